"""An empty machine for the tests: a Prefect home, a real server and real workers of its own."""

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

Value = TypeVar("Value")

ROOT = Path(__file__).resolve().parents[2]

POOL = "fcn"

FOREIGN = ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE", "PREFECT_TEST_MODE")
"""What the environment may say of other servers."""


def free_port() -> int:
    """A port of this machine where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(what: str, find: Callable[[], Value | None], seconds: float) -> Value:
    """What ``find`` finds at last, asked once a second.

    Raises:
        TimeoutError: nothing within so many seconds.
    """
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := find():
            return found
        time.sleep(1)
    raise TimeoutError(f"no {what} within {seconds:g} s")


def children(parent: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    table = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    rows = [tuple(map(int, line.split())) for line in table.stdout.splitlines()]
    direct = [pid for pid, ppid in rows if ppid == parent]
    return direct + [pid for child in direct for pid in children(child)]


def alive(pid):
    """Whether there is such a process, other than one that nobody has waited for."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


@dataclass
class Machine:
    """A server and what runs against it, each in a process of its own; all ends with `close`."""

    home: Path
    port: int = field(default_factory=free_port)
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def address(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What every command is given."""
        kept = {name: value for name, value in os.environ.items() if name not in FOREIGN}
        return kept | {
            "DO_NOT_TRACK": "1",
            "OMP_NUM_THREADS": "1",
            "PREFECT_API_URL": f"{self.address}/api",
            "PREFECT_HOME": str(self.home),
            "PREFECT_SERVER_API_HOST": "127.0.0.1",
            "PREFECT_SERVER_API_PORT": str(self.port),
            # Runs start in folders of their own; the code is this checkout's.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        }

    def start(self, name: str, *command: str) -> subprocess.Popen[bytes]:
        """Start a Python command in the checkout; its output goes to ``name.log`` in the home."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / f"{name}.log").open("ab") as log:
            running = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started.append(running)
        return running

    def run(self, *command: str, timeout: float = 240) -> str:
        """The output of a Python command in the checkout.

        Raises:
            RuntimeError: it failed.
        """
        outcome = subprocess.run(
            [sys.executable, *command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        if outcome.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{outcome.stdout}")
        return outcome.stdout

    def start_server(self) -> subprocess.Popen[bytes]:
        """A server that answers."""
        server = self.start("server", "-m", "prefect", "server", "start")
        wait_for("answer of the server", lambda: self._answers(server), 120)
        return server

    def _answers(self, server: subprocess.Popen[bytes]) -> bool:
        if server.poll() is not None:
            raise RuntimeError(f"the server ended; see {self.home / 'server.log'}")
        try:
            urllib.request.urlopen(f"{self.address}/api/health", timeout=5).close()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return False
        return True

    def close(self) -> None:
        """End everything that still runs, the last one first."""
        for running in reversed(self.started):
            kill(running)

    def set_up(self) -> None:
        """What an operator does once on a new server: work pool, deployments, automations."""
        self.run("deployments/set_up.py")

    def start_worker(self) -> subprocess.Popen[bytes]:
        """A worker, in the way that leaves nothing behind."""
        return self.start("worker", "deployments/worker.py", "--pool", POOL)


def kill(running: subprocess.Popen[bytes]) -> None:
    """SIGKILL to a process and all that it has started, as when a machine loses its power."""
    if running.poll() is not None:  # its number may be another's by now
        return
    for pid in [*children(running.pid), running.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    running.wait(30)


@contextmanager
def machine(home: Path) -> Iterator[Machine]:
    """A machine while the context lasts; this process, too, talks to its server."""
    from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES, temporary_settings

    made = Machine(home)
    settings: dict[Any, Any] = {
        PREFECT_API_URL: f"{made.address}/api",
        PREFECT_CLIENT_MAX_RETRIES: 3,
    }
    try:
        with temporary_settings(settings):
            yield made
    finally:
        made.close()
