"""The bar is drawn on a real pseudo-terminal, and nowhere else."""

import os
import pty
import subprocess
import sys

SCRIPT = """
from tasks.terminal import Bar
with Bar() as bar:
    bar.show(40, "Training: 4 of 10 images [loss]")
"""


def test_a_terminal_shows_the_bar() -> None:
    parent, child = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "120"}
    process = subprocess.Popen([sys.executable, "-c", SCRIPT], stderr=child, env=environment)
    os.close(child)
    shown = b""
    try:
        while chunk := os.read(parent, 4096):
            shown += chunk
    except OSError:  # the other side is closed
        pass
    assert process.wait() == 0
    assert b"Training: 4 of 10 images [loss]" in shown
    assert b"40%" in shown


def test_a_file_shows_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, check=True)
    assert done.stdout == done.stderr == b""
