"""``python -m flows VERB``; see `flows.command_line`."""

import sys

from flows.command_line import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
