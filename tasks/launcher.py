"""torchrun, as a child that ends with its parent: ``python -m tasks.launcher PID SOCKET COUNT``.

torchrun puts each rank into a session of its own, which no signal to the group of a flow run
reaches. So the kernel is asked, by this process and by every rank, to end it when its parent
ends, in whatever way. What the ranks tell goes past this process (see `tasks.torchrun`); it tells
only how they ended, if they did not end well.
"""

import ctypes
import json
import os
import signal
import socket
import sys

LAUNCHER_PID = "FCN_FLOWS_LAUNCHER_PID"
"""Environment variable that tells a rank which process its parent is."""

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process (SIGKILL) when the thread that started it ends.

    Linux only; elsewhere nothing happens.

    Args:
        parent: Process id of the parent: it may have ended before this was called.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def main() -> None:
    """Run ``COUNT`` ranks until all have ended, or one of them not well."""
    parent, address, count = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    end_with_parent(parent)
    os.environ[LAUNCHER_PID] = str(os.getpid())
    from torch.distributed import run  # noqa: PLC0415 - seconds, in which the parent may end
    from torch.distributed.elastic.multiprocessing.errors import (  # noqa: PLC0415
        ChildFailedError,
    )

    options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}"]
    try:
        run.main([*options, "--monitor-interval=0.1", "-m", "tasks.training_rank", address])
    except ChildFailedError as error:
        ended = {rank: failure.exitcode for rank, failure in error.failures.items()}
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(address)
            line.sendall(json.dumps({"ended": ended}).encode() + b"\n")
        sys.exit(1)


if __name__ == "__main__":
    main()
