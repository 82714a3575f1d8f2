"""A persistent local Prefect server, a process worker and the deployments: ``make ui``.

Ctrl-C stops all of it, flow runs included. ``PORT`` is the server's port, ``PREFECT_HOME``
holds its state.
"""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NoReturn

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("PREFECT_HOME", ROOT / ".prefect"))
PORT = os.environ.get("PORT", "4200")
ADDRESS = f"http://127.0.0.1:{PORT}"
POOL = "fcn"
GPU = "gpu:here"
LEAVE = 15.0
"""Seconds that worker and server each have to end: more than worker.py ever takes."""

ENVIRONMENT = os.environ | {
    "DO_NOT_TRACK": "1",
    "FCN_GPU_LIMIT": GPU,  # runs that find a GPU take turns
    "PREFECT_API_URL": f"{ADDRESS}/api",
    "PREFECT_HOME": str(HOME),
    "PREFECT_SERVER_API_HOST": "127.0.0.1",
    "PREFECT_SERVER_API_PORT": PORT,  # its pages call this port, whatever it listens on
}


def main() -> None:
    """Starts everything, waits, stops everything."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell ignored it
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    require_port()
    HOME.mkdir(parents=True, exist_ok=True)
    log_path = HOME / "server.log"
    print(f"Starting the Prefect server; its log is {log_path}", flush=True)
    server_start = ("-m", "prefect", "server", "start")
    with log_path.open("w") as log, child(*server_start, stdout=log, stderr=log) as server:
        wait_until_healthy(server, log_path)
        set_up()
        with child("deployments/worker.py", "--pool", POOL) as worker:
            print(f"\nOpen {ADDRESS} - Ctrl-C stops the server, the worker and its runs.")
            print("To see the runs of another shell there, type in it:")
            print(f"  export PREFECT_API_URL={ADDRESS}/api\n", flush=True)
            worker.wait()
    fail("the worker has stopped")


def require_port() -> None:
    """Ends here where the port is taken or is none."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", int(PORT)))
    except (OSError, OverflowError, ValueError) as error:
        fail(f"port {PORT} cannot be used ({error}); choose another: make ui PORT=4300")


def wait_until_healthy(server: subprocess.Popen[bytes], log_path: Path) -> None:
    """Returns when the server answers; ends here when it has died."""
    while server.poll() is None:
        try:
            urllib.request.urlopen(f"{ADDRESS}/api/health", timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.5)
        else:
            return
    fail(f"the Prefect server did not start; see {log_path}")


def set_up() -> None:
    """Makes pool, limit and deployments; ends here, with what it said, where it fails."""
    outcome = subprocess.run(
        [sys.executable, "deployments/set_up.py", "--gpu", GPU],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if outcome.returncode:
        fail(f"the server could not be set up:\n{outcome.stdout}")


@contextmanager
def child(
    *arguments: str, stdout: IO[Any] | None = None, stderr: IO[Any] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A Python command that runs beside this one and ends with it.

    It has a session of its own: a Ctrl-C reaches it from here, once, in the right order.
    """
    running = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
        preexec_fn=end_with_parent if sys.platform == "linux" else None,
    )
    try:
        yield running
    finally:
        stop(running)


def stop(running: subprocess.Popen[bytes]) -> None:
    """Stops a command and waits for it; a worker ends its flow runs and reports them first."""
    running.terminate()
    try:
        running.wait(LEAVE)
    except subprocess.TimeoutExpired:
        running.kill()
        running.wait()


def end_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent dies, even by SIGKILL."""
    pr_set_pdeathsig = 1  # <sys/prctl.h>
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def fail(reason: str) -> NoReturn:
    """Ends here, with one line that says why."""
    sys.exit(f"error: {reason}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
