"""What obstore reads of S3 is what s3fs reads: the same bytes, and the same reasons for none."""

import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec.config
import pytest

from tasks import part_file, s3_ranges, stores
from tasks.engine import segment
from tasks.predict_config import PredictConfig
from tasks.reading import ReadError, read_objects
from tasks.seconds import Seconds
from tasks.stores import Entry
from tests.faulty_store import faulty
from tests.tasks.pictures import Brightness, encoded, pixels

KEYS = [
    *("a b/plus+and&.jpg", "brackets[1]/star*.jpg", "hash#percent%41.jpg", "%2E%2E/x.jpg"),
    *("question?mark=1.jpg", "two::colons.jpg", "ünï/日本.jpg", "ünï/🙂.jpg", "ünï/e\u0301.jpg"),
    *("back\\slash.jpg", "quotes'\"<>|^`{}~.jpg", "..x/y..jpg", " space .jpg", "x" * 1000),
]
UNNAMEABLE = ["a//b.jpg", "a/../b.jpg", "a/./b.jpg", "/leading.jpg", "control\x01.jpg"]
"""Keys that obstore refuses, or takes for others."""


@pytest.fixture(params=[True, False], ids=["obstore", "s3fs"])
def is_installed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    assert s3_ranges.IS_INSTALLED
    monkeypatch.setattr(s3_ranges, "IS_INSTALLED", request.param)
    return bool(request.param)


def put(bucket: str, objects: dict[str, bytes]) -> dict[str, Entry]:
    """Objects with keys of any kind, as a listing has them."""
    fs, name = stores.filesystem(bucket)
    for key, data in objects.items():
        fs.call_s3("put_object", Bucket=name, Key=key, Body=data)
    return {
        key: Entry(key=key, url=f"{bucket}/{key}", size=len(data), etag="")
        for key, data in objects.items()
    }


def direct(bucket: str, keys: list[str]) -> list[bytes | None]:
    """What obstore gives of the first nine bytes."""
    fs, name = stores.filesystem(bucket)
    paths = [f"{name}/{key}" for key in keys]
    return s3_ranges.read_ranges(fs, paths, [0] * len(keys), [9] * len(keys), 4)


def test_every_key_gives_its_own_bytes(s3: Any, is_installed: bool) -> None:
    decoys = ["leading.jpg", "a/b.jpg", "b.jpg"]  # what the unnameable ones might be taken for
    objects = {key: f"bytes of {key}".encode() for key in [*KEYS, *UNNAMEABLE, *decoys, "empty"]}
    objects["empty"] = b""
    entries = put(s3.new_bucket(), objects)
    assert read_objects(list(entries.values())) == list(objects.values())


def test_obstore_reads_what_it_can_name_and_nothing_else(s3: Any) -> None:
    bucket = s3.new_bucket()
    put(bucket, {key: key.encode() for key in [*KEYS, *UNNAMEABLE, "leading.jpg"]})
    assert direct(bucket, KEYS) == [key.encode()[:9] for key in KEYS]
    assert direct(bucket, [*UNNAMEABLE, "absent"]) == [None] * (len(UNNAMEABLE) + 1)


def test_reasons_are_in_the_words_of_s3fs(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    bucket = s3.new_bucket()
    entries = put(bucket, {"grown": b"123", "shrunk": b"1234567", "gone": b"1", "whole": b"1"})
    put(bucket, {"grown": b"12345", "shrunk": b"1"})
    stores.remove(f"{bucket}/gone")
    told = []
    for is_installed in (True, False):
        monkeypatch.setattr(s3_ranges, "IS_INSTALLED", is_installed)
        found = read_objects(list(entries.values()))
        told.append([(type(one), str(one)) for one in found])
        assert [isinstance(one, ReadError) for one in found] == [True, True, True, False]
    assert told[0] == told[1]


def test_parts_are_the_same_with_and_without(
    s3: Any, is_installed: bool, rng: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Also where one call in ten goes wrong."""
    bucket = s3.new_bucket()
    images = {f"{n:02}.png": encoded(pixels(rng, 8, 9)) for n in range(40)}
    entries = list(put(bucket, images).values())
    undisturbed = rows_of(entries, bucket)
    with faulty(s3.endpoint, rate=0.1, seed=4) as proxy:
        assert rows_of(entries, bucket) == undisturbed
        assert proxy.faults.total() > 1


def rows_of(entries: list[Entry], bucket: str) -> bytes:
    config = PredictConfig()
    rows = segment(entries, Brightness(), config, seconds=Seconds())
    part = part_file.summarise(rows, run=0, number=0, run_digest="")
    assert part.ok == len(entries)
    return part_file.encode(rows, part, config.mask_format)


class Store(ThreadingHTTPServer):
    """An S3 store that gives every object as "bytes"; notes who asked, with what credentials.

    Attributes:
        asked: whether s3fs asked, the key of the credentials, and their token.
        pause: seconds before each byte.
        status: of every answer.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[bool, str, str | None]] = []
        self.pause = 0.0
        self.status = 206
        super().__init__(("127.0.0.1", 0), _Call)


class _Call(BaseHTTPRequestHandler):
    server: Store

    def do_GET(self) -> None:
        signature = self.headers.get("Authorization") or ""
        key = signature.partition("Credential=")[2].partition("/")[0]
        by_s3fs = "boto" in (self.headers.get("User-Agent") or "").lower()
        self.server.asked.append((by_s3fs, key, self.headers.get("x-amz-security-token")))
        self.send_response(self.server.status)
        self.send_header("Content-Length", "5")
        self.send_header("Content-Range", "bytes 0-4/5")
        self.send_header("ETag", '"x"')
        self.send_header("Last-Modified", "Wed, 21 Oct 2015 07:28:00 GMT")
        self.end_headers()
        for number in b"bytes":
            time.sleep(self.server.pause)
            self.wfile.write(bytes([number]))

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def store(s3: Any) -> Iterator[Store]:
    """Its address goes into fsspec's configuration; the environment is that of the other store."""
    with Store() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.mark.parametrize(
    ("settings", "environment", "expected"),
    [
        ({}, {}, ("test", None)),
        ({"key": "mine", "secret": "s", "token": "t"}, {}, ("mine", "t")),
        ({}, {"AWS_SESSION_TOKEN": "session"}, ("test", "session")),
        ({}, {"AWS_PROFILE": "other", "AWS_SHARED_CREDENTIALS_FILE": "file"}, ("profiled", None)),
        ({"anon": True}, {}, ("", None)),
    ],
)
def test_credentials_are_those_that_s3fs_takes(
    settings: dict[str, Any],
    environment: dict[str, str],
    expected: tuple[str, str | None],
    store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text(
        "[other]\naws_access_key_id = profiled\naws_secret_access_key = s\n", encoding="utf-8"
    )
    for name, value in environment.items():
        monkeypatch.setenv(name, str(tmp_path / value) if value == "file" else value)
    if "AWS_PROFILE" in environment:
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    endpoint = f"http://127.0.0.1:{store.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint, **settings})
    assert direct("s3://bucket", ["a", "b"]) == [b"bytes", b"bytes"]
    assert store.asked == [(False, *expected)] * 2


@pytest.mark.parametrize(
    "settings", [{"requester_pays": True}, {"client_kwargs": {"verify": False}}]
)
def test_settings_that_obstore_may_not_know_are_left_to_s3fs(
    settings: dict[str, Any], store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    endpoint = f"http://127.0.0.1:{store.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint, **settings})
    assert read_objects([Entry(key="a", url="s3://bucket/a", size=5, etag="")]) == [b"bytes"]
    assert [by_s3fs for by_s3fs, *_ in store.asked] == [True]


def test_a_store_without_credentials_is_told_by_s3fs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    endpoint = f"http://127.0.0.1:{store.server_port}"
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": endpoint})
    [found] = read_objects([Entry(key="a", url="s3://bucket/a", size=5, etag="")])
    assert "Unable to locate credentials" in str(found)
    assert store.asked == []


def configure(monkeypatch: pytest.MonkeyPatch, port: int, **client: float) -> None:
    settings = {"endpoint_url": f"http://127.0.0.1:{port}", "config_kwargs": client}
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)


def test_patience_is_for_each_read_as_with_s3fs(
    store: Store, is_installed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five reads of 0.3 s each are more than a second, and none of them is."""
    configure(monkeypatch, store.server_port, read_timeout=1)
    store.pause = 0.3
    assert read_objects([Entry(key="a", url="s3://bucket/a", size=5, etag="")]) == [b"bytes"]
    assert [by_s3fs for by_s3fs, *_ in store.asked] == [not is_installed]


def test_patience_ends_and_nothing_is_asked_twice(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(monkeypatch, store.server_port, read_timeout=0.2)
    store.pause = 0.6
    assert direct("s3://bucket", ["a"]) == [None]
    configure(monkeypatch, store.server_port, read_timeout=5)
    store.status, store.pause = 503, 0
    assert direct("s3://bucket", ["b"]) == [None]
    assert len(store.asked) == 2


def test_patience_for_a_connection_is_that_of_s3fs(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)  # connections that nobody accepts wait; there is room for one
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        configure(monkeypatch, full.getsockname()[1], connect_timeout=0.5)
        start = time.monotonic()
        assert direct("s3://bucket", ["a"]) == [None]
        assert 0.4 < time.monotonic() - start < 4


def test_other_stores_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"x")
    fs, path = stores.filesystem(str(tmp_path / "x"))
    assert s3_ranges.read_ranges(fs, [path], [0], [2], 1) == [None]
