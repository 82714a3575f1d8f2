"""A webhook on this machine."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

SECRET = "T0PS3CRET"
"""Part of the webhook's URL that must be seen nowhere."""


class Receiver(ThreadingHTTPServer):
    """Keeps what is posted to it in `bodies`, and answers after `seconds` with `status`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Posted)
        self.status = 200
        self.seconds = 0.0
        self.bodies: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        """The one that is posted to."""
        return f"http://127.0.0.1:{self.server_port}/services/{SECRET}"


class _Posted(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        assert self.headers["Content-Type"] == "application/json"
        assert self.path == f"/services/{SECRET}"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(json.loads(body))
        time.sleep(self.server.seconds)
        self.send_response(self.server.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def receiving() -> Iterator[Receiver]:
    """A webhook that listens while the context lasts."""
    with Receiver() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
