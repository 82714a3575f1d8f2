"""A cancelled run of a deployment whose worker does not end it, in a process of its own."""

import os
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, get_current_settings
from prefect.states import Cancelling, Pending

from tests.receiver import receiving
from tests.tasks.cancelling import long

ROOT = Path(__file__).resolve().parents[2]


def test_a_cancelled_run_that_nobody_ends_ends_itself_and_tells_the_webhook(
    prefect_server, monkeypatch
):
    with receiving() as receiver:
        monkeypatch.setenv("FCN_WEBHOOK_URL", receiver.url)
        receiver.seconds = 5
        with begun() as (run, running):
            cancel(run)
            wait_until(lambda: receiver.bodies)
            running.terminate()  # its worker has heard of the cancel after all
            running.wait(30)
    assert state_of(run) == "Cancelled"
    [told] = receiver.bodies
    assert (told["run_id"], told["state"]) == (str(run.id), "Cancelled")
    assert told["message"] == "ended itself: its worker had not heard of the cancel"


def test_a_proxy_that_answers_in_place_of_the_server_does_not_end_the_watching(
    prefect_server, tmp_path
):
    """A real server behind a real proxy, which is asked to sign in for a while."""
    said = tmp_path / "said"
    with Proxy() as proxy, said.open("wb") as file, begun(proxy.url, file) as (run, running):
        proxy.signs_in = True
        wait_until(lambda: proxy.pages >= 3)
        proxy.signs_in = False
        cancel(run)
        running.wait(30)
    assert state_of(run) == "Cancelled"
    assert said.read_text().count("not known whether this run was cancelled (JSONDecodeError") == 1


@contextmanager
def begun(api: str | None = None, said: Any = None) -> Iterator[tuple[FlowRun, Any]]:
    """A run that is at work, and its process, which is told another URL of the server."""
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(long), "long")
        run = client.create_flow_run_from_deployment(deployment, state=Pending())
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.tasks.cancelling", str(run.id)],
        cwd=ROOT,
        env=os.environ | settings | ({"PREFECT_API_URL": api} if api else {}),
        stderr=said,
    )
    try:
        wait_until(lambda: state_of(run) == "Running")
        yield run, running
    finally:
        running.kill()
        running.wait()


def cancel(run: FlowRun) -> None:
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelling())


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 7\r\n\r\nSign in"


class Proxy(socketserver.ThreadingTCPServer):
    """Passes bytes on to the server; while it `signs_in`, questions about a run get a page."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Passing)
        server = urlsplit(PREFECT_API_URL.value())
        self.server = (server.hostname, server.port)
        self.url = f"http://127.0.0.1:{self.server_address[1]}{server.path}"
        self.signs_in, self.pages = False, 0

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class _Passing(socketserver.BaseRequestHandler):
    server: Proxy

    def handle(self) -> None:
        with suppress(OSError), socket.create_connection(self.server.server) as upstream:
            threading.Thread(target=_pass_on, args=(upstream, self.request), daemon=True).start()
            while data := self.request.recv(1 << 16):
                if self.server.signs_in and data.startswith(b"GET /api/flow_runs/"):
                    self.server.pages += 1
                    self.request.sendall(PAGE)
                else:
                    upstream.sendall(data)


def _pass_on(one: socket.socket, other: socket.socket) -> None:
    with suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)


def state_of(run: FlowRun) -> str | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id).state_name


def wait_until(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.2)
