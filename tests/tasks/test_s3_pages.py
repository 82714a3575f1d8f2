"""Pages of an S3 listing: what botocore would make of them, and no page that is damaged."""

import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import fsspec.config
import pytest
from botocore.parsers import ResponseParserError

from tasks import s3_pages, stores
from tasks.stores import StoreUnavailable
from tests.faulty_store import Fault, faulty

KEYS = [
    *("a b/plus+and&.jpg", "<tag>.jpg", "hash#percent%41.jpg", "a//b.jpg", "a/../b.jpg"),
    *("control\x01.jpg", "tab\t.jpg", "quotes'\"`.jpg", " space .jpg"),
    *("ünï/日本.jpg", "ünï/🙂.jpg", "ünï/e\u0301.jpg", "x" * 1000, "%ff+%2B.jpg"),
]


def test_pages_are_what_botocore_makes_of_them(s3: Any) -> None:
    fs, bucket = stores.filesystem(s3.new_bucket())
    for key in KEYS:
        fs.call_s3("put_object", Bucket=bucket, Key=f"in/{key}", Body=key.encode())

    [page] = s3_pages.pages(fs, bucket, "in/")
    expected = fs.call_s3("list_objects_v2", Bucket=bucket, Prefix="in/")["Contents"]

    told = [(one["Key"], one["Size"], one["ETag"]) for one in page]
    assert told == [(one["Key"], one["Size"], one["ETag"]) for one in expected]
    assert [one["Key"] for one in page] == sorted(f"in/{key}" for key in KEYS)


@pytest.mark.parametrize("fault", ["cut body", "503"])
def test_a_page_is_asked_for_again(s3: Any, fault: Fault) -> None:
    bucket = s3.new_bucket()
    stores.write_bytes(f"{bucket}/x", b"x")
    with faulty(s3.endpoint) as proxy:
        proxy.planned = [("GET", "list-type=2&prefix=&", fault)]
        assert [entry.key for entry in stores.list_entries(bucket)] == ["x"]
        assert proxy.planned == []


class Lister(ThreadingHTTPServer):
    """An S3 store that answers every call with the same body."""

    def __init__(self) -> None:
        self.body = b""
        self.calls = 0
        super().__init__(("127.0.0.1", 0), _Call)


class _Call(BaseHTTPRequestHandler):
    server: Lister

    def do_GET(self) -> None:
        self.server.calls += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        self.wfile.write(self.server.body)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def lister(s3: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lister]:
    with Lister() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        settings = {"endpoint_url": endpoint, "config_kwargs": {"retries": {"max_attempts": 1}}}
        monkeypatch.setitem(fsspec.config.conf, "s3", settings)
        yield server
        server.shutdown()


def body(*lines: str, root: str = "ListBucketResult", before: str = "") -> bytes:
    return f'<?xml version="1.0"?>{before}<{root}>{"".join(lines)}</{root}>'.encode()


ONE = "<Contents><Key>a+b%2Fc</Key><Size>3</Size><ETag>&quot;e&quot;</ETag></Contents>"


def listed(server: Lister, data: bytes) -> list[tuple[str, int, str]]:
    server.body = data
    fs, path = stores.filesystem("s3://bucket")
    entries = stores.listing.walk(fs, path, "s3://bucket")
    return [(entry.key, entry.size, entry.etag) for entry in entries]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (body(), []),
        (body(ONE), [("a+b%2Fc", 3, "e")]),
        (body(ONE, "<EncodingType>url</EncodingType>"), [("a b/c", 3, "e")]),
        (
            body("<Contents><Owner><ID>1</ID><Key>no</Key></Owner><Key>&lt;k</Key></Contents>"),
            [("<k", stores.UNKNOWN_SIZE, "")],
        ),
        (
            body(
                "<Contents><Key>k</Key><LastModified>2026-01-02T03:04:05.000Z</LastModified>"
                "<Size>1</Size></Contents>"
            ),
            [("k", 1, "2026-01-02 03:04:05+00:00")],
        ),
    ],
    ids=["empty", "plain", "encoded", "owner", "no etag"],
)
def test_what_a_page_says(
    data: bytes, expected: list[tuple[str, int, str]], lister: Lister
) -> None:
    assert listed(lister, data) == expected


BOMB = '<!DOCTYPE x [<!ENTITY a "lol"><!ENTITY b "&a;&a;&a;">]>'


REFUSED = {
    "cut": (body(ONE)[:-9], "internal server error"),
    "nothing": (b"", "a page of a listing is empty"),
    "no entity": (body("<Contents><Key>&x;</Key></Contents>"), "internal server error"),
    "control": (body("<Contents><Key>\x01</Key></Contents>"), "internal server error"),
    "doctype": (body(ONE, before=BOMB), "document type"),
    "bomb": (body("<Contents><Key>&b;</Key></Contents>", before=BOMB), "document type"),
    "file": (body(ONE, before='<!DOCTYPE x SYSTEM "file:///etc/hosts">'), "document type"),
    "no token": (body(ONE, "<IsTruncated>true</IsTruncated>"), "NextContinuationToken"),
    "no key": (body("<Contents><Size>3</Size></Contents>"), "KeyError: 'Key'"),
    "other": (body("<body>Please log in</body>", root="html"), "it begins with <html>"),
    "size": (body("<Contents><Key>x</Key><Size>many</Size></Contents>"), "int"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_damaged_or_hostile_pages_are_asked_for_again_and_refused(
    data: bytes, reason: str, lister: Lister, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 2)
    lister.body = data
    with pytest.raises(StoreUnavailable, match=rf"cannot list s3://bucket/: .*{reason}"):
        list(stores.list_entries("s3://bucket/"))
    assert lister.calls == 2


def test_errors_are_told_by_botocore(lister: Lister) -> None:
    lister.body = body("<Code>InternalError</Code><Message>again</Message>", root="Error")
    with pytest.raises(StoreUnavailable, match=r"cannot list s3://bucket/: .*again"):
        list(stores.list_entries("s3://bucket/"))


def test_other_calls_of_the_same_client_are_left_alone(s3: Any) -> None:
    bucket = s3.new_bucket()
    stores.write_bytes(f"{bucket}/x", b"x")
    assert [entry.key for entry in stores.list_entries(bucket)] == ["x"]
    fs, path = stores.filesystem(bucket)
    answer = fs.call_s3("list_objects_v2", Bucket=path)
    assert [one["Key"] for one in answer["Contents"]] == ["x"]
    assert fs.ls(path, detail=False) == [f"{path}/x"]


def test_any_xml_of_a_page_is_read_or_refused() -> None:
    """Bytes changed by chance: never anything but a page, no page, or the error of a page."""
    chance = random.Random(0)
    page = body(ONE * 3, "<EncodingType>url</EncodingType>")
    outcomes = set()
    for _ in range(2000):
        data = bytearray(page)
        for _ in range(chance.randrange(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            outcomes.add("page" if s3_pages.parse(bytes(data)) else "no page")
        except ResponseParserError:
            outcomes.add("refused")
    assert {"page", "no page"} <= outcomes
