"""Bytes of many objects: each read, or a reason; a store that is out is another matter."""

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks import reading, stores
from tasks.reading import ObjectChanged, ObjectTooLarge, ObjectVanished, ReadFailed, read_objects
from tasks.stores import Entry, StoreUnavailable
from tests.tasks.pictures import put

KEYS = [
    "a b.jpg",
    "brackets[1]/star*.jpg",
    "hash#percent%41.jpg",
    "question?mark=1.jpg",
    "ü/日.jpg",
]


@pytest.mark.parametrize("store", ["local", "memory", "s3"])
def test_every_object_is_read_and_outcomes_stay_in_order(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if store == "s3":
        prefix = request.getfixturevalue("s3").new_bucket() + "/in"
    else:
        prefix = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    put(prefix, {key: key.encode() for key in KEYS})
    put(prefix, {"empty": b"", "gone": b"123", "grows": b"123", "shrinks": b"123"})
    entries = {entry.key: entry for entry in stores.list_entries(prefix)}
    stores.remove(f"{prefix}/gone")
    put(prefix, {"grows": b"1234567", "shrinks": b"1"})

    found = dict(zip(entries, read_objects(list(entries.values())), strict=True))

    assert {key: found[key] for key in KEYS} == {key: key.encode() for key in KEYS}
    assert found["empty"] == b""
    assert isinstance(found["gone"], ObjectVanished)
    assert isinstance(found["grows"], ObjectChanged)
    assert str(found["grows"]) == "more than 3 bytes where 3 were listed: changed since"
    assert isinstance(found["shrinks"], ObjectChanged)
    assert str(found["shrinks"]) == "1 bytes where 3 were listed: changed since"


class Site(ThreadingHTTPServer):
    """Answers 503 as the path says: ``/2/x`` twice, ``/always/x`` and ``/0/never`` always.

    ``/signed/x`` leads to ``/always/x`` with a signature.
    """

    def __init__(self) -> None:
        self.asked = Counter[str]()
        super().__init__(("127.0.0.1", 0), _Answers)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def entry(self, path: str, size: int = 1) -> Entry:
        url = f"http://127.0.0.1:{self.server_port}/{path}"
        return Entry(key=path, url=url, size=size, etag="")


class _Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        assert isinstance(self.server, Site)
        asked = self.server.asked
        asked[self.path] += 1
        times = self.path.split("/")[1]
        if times == "signed":
            self.send_response(302)
            self.send_header("Location", self.path.replace("signed", "always") + "?sig=secret")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        bad = times == "always" or self.path.endswith("/never") or asked[self.path] <= int(times)
        self.send_response(503 if bad else 200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"x")

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(reading, "FIRST_DELAY", 0.01)
    with Site() as server:
        yield server
        server.shutdown()


def test_passing_troubles_are_tried_again_and_lasting_ones_become_reasons(site: Site) -> None:
    found = read_objects([site.entry("0/a"), site.entry("2/b"), site.entry("always/c")])
    assert found[:2] == [b"x", b"x"]
    assert isinstance(found[2], ReadFailed)
    assert "503" in str(found[2])
    assert site.asked == {"/0/a": 1, "/2/b": 3, "/always/c": reading.ATTEMPTS}


def test_pauses_double_and_are_no_two_times_the_same(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(reading, "time", SimpleNamespace(sleep=pauses.append))
    for number in range(10):
        read_objects([site.entry("0/a"), site.entry(f"always/{number}")])
    of_one = reading.ATTEMPTS - 1
    assert len(pauses) == 10 * of_one
    chances = [
        pause / (reading.FIRST_DELAY * 2 ** (place % of_one)) for place, pause in enumerate(pauses)
    ]
    assert all(0.5 <= chance <= 1.5 for chance in chances)
    assert max(chances) - min(chances) > 0.5


def test_signature_of_a_redirect_stays_out_of_the_reasons(site: Site) -> None:
    signed = site.entry("signed/a")
    _, found = read_objects([site.entry("0/a"), signed])
    assert isinstance(found, ReadFailed)
    assert "/always/a" in str(found)
    assert "secret" not in str(found)
    with pytest.raises(StoreUnavailable, match=r"/signed/a: .*503") as caught:
        read_objects([signed])
    assert "secret" not in str(caught.value)


def test_store_that_gives_nothing_at_all_is_no_fault_of_the_images(site: Site) -> None:
    with pytest.raises(Exception, match="503") as caught:
        read_objects([site.entry("always/a"), site.entry("always/b")])
    assert stores.is_transient(caught.value)


def test_last_attempt_tells_a_lone_object_from_a_store_that_is_out(site: Site) -> None:
    lone = site.entry("0/never")
    with pytest.raises(Exception, match="503"):
        read_objects([lone])
    [found] = read_objects([lone], last_attempt=True)
    assert isinstance(found, ReadFailed)
    with pytest.raises(Exception, match="503"):
        read_objects([site.entry("always/a")], last_attempt=True)


def test_unknown_sizes_are_read_whole(site: Site) -> None:
    assert read_objects([site.entry("0/a", size=stores.UNKNOWN_SIZE)]) == [b"x"]


def test_objects_above_the_limit_are_not_read(site: Site) -> None:
    unknown = site.entry("0/a", size=stores.UNKNOWN_SIZE)
    listed, lone = read_objects([site.entry("0/b", size=2_000), unknown], max_bytes=1)
    assert isinstance(listed, ObjectTooLarge)
    assert "2,000 bytes; at most 1 are read" in str(listed)
    assert lone == b"x"
    assert site.asked == {"/0/a": 1}


def test_object_of_unknown_size_is_read_up_to_the_limit(tmp_path: Path) -> None:
    put(str(tmp_path), {"a": b"1234"})
    entry = Entry(key="a", url=f"{tmp_path}/a", size=stores.UNKNOWN_SIZE, etag="")
    assert read_objects([entry], max_bytes=4) == [b"1234"]
    [found] = read_objects([entry], max_bytes=3)
    assert isinstance(found, ObjectTooLarge)
    assert "more than 3 bytes" in str(found)


def test_nothing_to_read() -> None:
    assert read_objects([]) == []
