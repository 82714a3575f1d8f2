"""A proxy before an S3 store that does to some of the calls what networks and stores do."""

import http.client
import random
import re
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import urlsplit

import fsspec.config
import pytest

Fault = Literal[
    "lost call",
    "lost answer",
    "cut body",
    "500",
    "503",
    "slow",
    "silent",
    "bare answer",
    "no such upload",
    "cut upload",
]

FAULTS: tuple[Fault, ...] = (
    "lost call",  # the connection ends, and the store has not seen the call
    "lost answer",  # the store has done it, and the connection ends without an answer
    "cut body",  # the right status and length, and half of the body
    "500",
    "503",
    "slow",  # an answer after `DELAY`
    "silent",  # no answer within the client's patience
)
DELAY = 0.2
PATIENCE = 1
SILENCE = 1.5
"""Seconds: of a slow answer, that a client waits for one, and that it does not get one."""


class FaultyProxy(ThreadingHTTPServer):
    """Passes calls on to a store, some of them with a fault.

    Which call of a method and path gets which fault by chance is fixed by the seed, in
    whatever order threads come.

    Attributes:
        rate: share of the calls that get a fault by chance.
        planned: faults of the next calls with this method and with this text in their path.
        faults: faults so far.
    """

    daemon_threads = True

    def __init__(self, store: str, rate: float, seed: int) -> None:
        self.store = urlsplit(store).netloc
        self.rate = rate
        self.seed = seed
        self.planned: list[tuple[str, str, Fault]] = []
        self.faults = Counter[Fault]()
        self._times = Counter[tuple[str, str]]()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Call)

    def fault(self, method: str, path: str) -> Fault | None:
        """What is to happen to the next call of this method and path."""
        with self._lock:
            self._times[method, path] += 1
            fault = self._planned(method, path) or self._by_chance(method, path)
            if fault:
                self.faults[fault] += 1
            return fault

    def _planned(self, method: str, path: str) -> Fault | None:
        for one in self.planned:
            if one[0] == method and one[1] in path:
                self.planned.remove(one)
                return one[2]
        return None

    def _by_chance(self, method: str, path: str) -> Fault | None:
        text = f"{self.seed} {method} {path} {self._times[method, path]}"
        chance = random.Random(zlib.crc32(text.encode()))
        return chance.choice(FAULTS) if chance.random() < self.rate else None

    def handle_error(self, *_: Any) -> None:
        """Nothing: clients hang up on a proxy like this."""


class _Call(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyProxy

    def answer(self) -> None:
        """Pass one call on, unless there is a fault."""
        fault = self.server.fault(self.command, self.path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if fault == "slow":
            time.sleep(DELAY)
        if fault == "silent":
            time.sleep(SILENCE)
        if fault == "cut upload":  # as of a client that is killed, or a proxy that gives up
            self._begin(body)
        if fault in {"lost call", "silent", "cut upload"}:
            self.close_connection = True
            return
        if fault in {"500", "503"}:
            self._send(int(fault), {"Content-Length": "0"}, b"")
            return
        status, headers, found = self._ask(body)
        if fault == "bare answer":  # as of stores that do not say which condition failed
            found = re.sub(rb"<Condition>.*</Condition>", b"", found)
            headers["Content-Length"] = str(len(found))
        if fault == "no such upload":  # as of stores that forget an upload that is done
            status, found = 404, b"<Error><Code>NoSuchUpload</Code><Message>gone</Message></Error>"
            headers = {"Content-Length": str(len(found)), "Content-Type": "application/xml"}
        if fault == "lost answer":
            self.close_connection = True
            return
        if fault == "cut body":
            found = found[: len(found) // 2]
            self.close_connection = True
        self._send(status, headers, found)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer  # noqa: N815

    def _begin(self, body: bytes) -> None:
        """Half of a call, and no more of it."""
        store = http.client.HTTPConnection(self.server.store, timeout=60)
        store.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name != "Expect":
                store.putheader(name, value)
        store.endheaders(body[: len(body) // 2])
        store.close()

    def _ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """The store's own answer."""
        store = http.client.HTTPConnection(self.server.store, timeout=60)
        try:
            headers = {name: value for name, value in self.headers.items() if name != "Expect"}
            store.request(self.command, self.path, body, headers)
            found = store.getresponse()
            data = found.read()
            given = {
                name: value
                for name, value in found.getheaders()
                if name.lower() not in {"connection", "transfer-encoding", "content-length"}
            }
            given["Content-Length"] = found.getheader("Content-Length") or str(len(data))
            return found.status, given, data
        finally:
            store.close()

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextmanager
def faulty(
    endpoint: str, *, rate: float = 0.0, seed: int = 0, **client: Any
) -> Iterator[FaultyProxy]:
    """Everything that this process does with ``s3://`` URLs goes through a proxy.

    Args:
        endpoint: The store.
        rate: Share of the calls that get a fault.
        seed: Of the chance.
        **client: Settings of botocore's client.
    """
    with FaultyProxy(endpoint, rate, seed) as proxy, pytest.MonkeyPatch.context() as patch:
        threading.Thread(target=proxy.serve_forever, daemon=True).start()
        settings = {
            "endpoint_url": f"http://127.0.0.1:{proxy.server_port}",
            "config_kwargs": {"read_timeout": PATIENCE, **client},
        }
        patch.setitem(fsspec.config.conf, "s3", settings)
        yield proxy
        proxy.shutdown()
