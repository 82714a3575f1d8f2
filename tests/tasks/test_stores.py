"""Objects are listed in order, read, and written whole or not at all, on every store."""

import errno
import io
import multiprocessing
import os
import threading
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.server import HTTPServer, SimpleHTTPRequestHandler
from pathlib import Path
from typing import Any

import fsspec.config
import pytest
from botocore.exceptions import EndpointConnectionError

from tasks import stores
from tasks.stores import StoreError, StoreUnavailable

HARD_KEYS = [
    "a b/plus+and&.jpg",
    "a-b.jpg",
    "a/z.jpg",
    "a.jpg",
    "brackets[1]/star*.jpg",
    "hash#percent%41.jpg",
    "question?mark=1.jpg",
    "two::colons.jpg",
    "ünï/日本.jpg",
    "ünï/🙂.jpg",
]


@pytest.fixture(params=["local", "memory", "s3"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty place in one of the stores."""
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}"
    return str(request.getfixturevalue("s3").new_bucket()) + "/deep/er"


def test_listing_is_sorted_by_key_and_every_name_can_be_read_back(prefix: str) -> None:
    # fsspec's memory store takes "::" for a chain of stores
    keys = [key for key in HARD_KEYS if "::" not in key or "memory" not in prefix]
    for key in keys:
        stores.write_bytes(stores.join(prefix, key), key.encode())

    entries = list(stores.list_entries(prefix))

    assert [entry.key for entry in entries] == sorted(keys)
    assert [entry.size for entry in entries] == [len(entry.key.encode()) for entry in entries]
    assert [stores.read_bytes(entry.url) for entry in entries] == [
        entry.key.encode() for entry in entries
    ]
    assert all(entry.url == stores.join(prefix, entry.key) for entry in entries)


def test_etag_tells_that_an_object_changed(prefix: str) -> None:
    url = stores.join(prefix, "x.jpg")
    stores.write_bytes(url, b"one")
    [before] = stores.list_entries(prefix)
    stores.write_bytes(url, b"two")
    [after] = stores.list_entries(prefix)

    assert before.etag
    assert before.etag != after.etag


def test_listing_of_a_missing_url_says_so(prefix: str) -> None:
    stores.write_bytes(stores.join(prefix, "x.jpg"), b"x")
    with pytest.raises(StoreError, match=r"cannot list .*/absent: nothing there"):
        stores.list_entries(stores.join(prefix, "absent"))


def test_one_object_lists_as_itself(prefix: str) -> None:
    url = stores.join(prefix, "sub", "x[1].jpg")
    stores.write_bytes(url, b"four")

    [entry] = stores.list_entries(url)

    assert (entry.key, entry.url, entry.size) == ("x[1].jpg", url, 4)


@pytest.mark.parametrize(
    ("pattern", "keys"),
    [
        ("*.jpg", ["a.jpg"]),
        ("**/*.jpg", ["a.jpg", "sub/b.jpg", "sub/deep/c.jpg"]),
        ("sub/?.jpg", ["sub/b.jpg"]),
        ("sub/*/[cd].jpg", ["sub/deep/c.jpg"]),
        ("*.tiff", []),
    ],
)
def test_glob_takes_what_it_names(prefix: str, pattern: str, keys: list[str]) -> None:
    for key in ["a.jpg", "a.png", "sub/b.jpg", "sub/deep/c.jpg"]:
        stores.write_bytes(stores.join(prefix, key), b"x")

    urls = [entry.url for entry in stores.list_entries(stores.join(prefix, pattern))]

    assert urls == [stores.join(prefix, key) for key in keys]


def test_prefix_with_brackets_in_its_name_is_no_glob(prefix: str) -> None:
    stores.write_bytes(stores.join(prefix, "photos [2020]", "x.jpg"), b"x")
    [entry] = stores.list_entries(stores.join(prefix, "photos [2020]"))
    assert entry.key == "x.jpg"


def test_s3_listing_goes_on_after_its_first_page(s3: Any) -> None:
    bucket = s3.new_bucket()
    keys = [f"{index:04d}.jpg" for index in range(1005)]
    fs, path = stores.filesystem(bucket)
    fs.pipe({f"{path}/{key}": b"x" for key in keys})
    fs.call_s3("put_object", Bucket=path, Key="folder/", Body=b"")  # as consoles make them

    assert [entry.key for entry in stores.list_entries(bucket)] == keys


def test_local_listing_follows_links_and_survives_a_loop(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (store / "sub").mkdir(parents=True)
    (store / "sub" / "x.jpg").write_bytes(b"123")
    (store / "link.jpg").symlink_to(store / "sub" / "x.jpg")
    (store / "nothing.jpg").symlink_to(store / "gone.jpg")
    (store / "sub" / "loop").symlink_to(store)
    os.mkfifo(store / "pipe.jpg")

    keys = [entry.key for entry in stores.list_entries(str(store))]

    assert keys == ["link.jpg", "nothing.jpg", "sub/x.jpg"]


def test_listing_sees_what_was_written_since(prefix: str) -> None:
    stores.write_bytes(stores.join(prefix, "a"), b"x")
    assert len(list(stores.list_entries(prefix))) == 1
    stores.write_bytes(stores.join(prefix, "b"), b"x")
    assert len(list(stores.list_entries(prefix))) == 2
    assert stores.exists(stores.join(prefix, "b"))
    assert not stores.exists(stores.join(prefix, "c"))


def test_create_leaves_what_is_there(prefix: str) -> None:
    url = stores.join(prefix, "parts", "part-00000.parquet")

    assert stores.create_bytes(url, b"first") is True
    assert stores.create_bytes(url, b"second") is False
    assert stores.read_bytes(url) == b"first"

    stores.write_bytes(url, b"third")
    assert stores.read_bytes(url) == b"third"


def test_create_file_puts_what_a_local_file_holds(prefix: str, tmp_path: Path) -> None:
    url = stores.join(prefix, "manifest", "x.parquet")
    for data, created in [(b"first" * 1_000_000, True), (b"second", False)]:
        (tmp_path / "source").write_bytes(data)
        assert stores.create_file(url, tmp_path / "source") is created
    assert stores.read_bytes(url) == b"first" * 1_000_000
    with stores.open_input(url) as file:
        file.seek(-3, 2)
        assert file.read() == b"rst"


def test_one_of_many_racing_writers_wins(prefix: str) -> None:
    url = stores.join(prefix, "part")
    data = [bytes([number]) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as threads:
        won = list(threads.map(lambda one: stores.create_bytes(url, one), data))

    assert won.count(True) == 1
    assert stores.read_bytes(url) == data[won.index(True)]


def test_local_writing_leaves_no_other_file_behind(tmp_path: Path) -> None:
    url = str(tmp_path / "x")
    stores.create_bytes(url, b"1")
    stores.create_bytes(url, b"2")
    stores.write_bytes(url, b"3")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("write", [stores.write_bytes, stores.create_bytes])
def test_failed_write_leaves_nothing(tmp_path: Path, write: Callable[[str, bytes], object]) -> None:
    import resource
    import signal

    def limited() -> None:  # a full disk, as the kernel reports it to one process
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        try:
            write(str(tmp_path / "x"), b"x" * 10_000)
        except StoreError as error:
            os._exit(0 if "file too large" in str(error) else 2)
        os._exit(1)

    child = multiprocessing.get_context("fork").Process(target=limited)
    child.start()
    child.join()

    assert child.exitcode == 0
    assert list(tmp_path.iterdir()) == []


def test_spawned_process_reads_the_same_store(s3: Any) -> None:
    url = stores.join(s3.new_bucket(), "x")
    stores.write_bytes(url, b"from the parent")
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(stores.read_bytes, (url,)) == b"from the parent"


def test_https_files_can_be_read_and_not_written(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "x.jpg").write_bytes(b"1234")

    class Quiet(SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        site = f"http://127.0.0.1:{server.server_port}"
        [entry] = stores.list_entries(f"{site}/photos/x.jpg")
        [listed] = stores.list_entries(f"{site}/photos/")
        assert (entry.key, entry.size) == ("x.jpg", 4)
        assert (listed.key, listed.url) == ("x.jpg", f"{site}/photos/x.jpg")
        assert stores.read_bytes(entry.url) == b"1234"
        with pytest.raises(StoreError, match="nothing there"):
            stores.read_bytes(f"{site}/photos/y.jpg")
        with pytest.raises(StoreError, match="Unsupported method"):
            stores.create_bytes(f"{site}/photos/y.jpg", b"")
        server.shutdown()


def test_unwritable_output_is_found_before_work(tmp_path: Path, s3: Any) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write .*: not a directory"):
        stores.require_writable(str(tmp_path / "file" / "out"))
    with pytest.raises(StoreError, match="cannot write /proc/out"):
        stores.require_writable("/proc/out")
    with pytest.raises(StoreError, match=r"cannot write s3://no-such-bucket-here/"):
        stores.require_writable("s3://no-such-bucket-here/out")


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (errno.EROFS, "read-only file system; choose another place"),
        (errno.ENOSPC, "no space left on device; make room there, then run again"),
        (errno.EDQUOT, "disk quota exceeded; make room there, then run again"),
        (errno.ENAMETOOLONG, "file name too long"),
    ],
)
def test_what_the_system_refuses_for_good_is_said_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, text: str
) -> None:
    def refuse(_descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(StoreError, match=rf"cannot write {tmp_path}/.*: {text}$") as caught:
        stores.require_writable(str(tmp_path))
    assert not stores.is_transient(caught.value)


def test_store_that_does_not_answer_is_named_and_may_do_so_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {
        "key": "a",
        "secret": "b",
        "endpoint_url": "http://127.0.0.1:9",
        "config_kwargs": {"retries": {"max_attempts": 0}},
    }
    monkeypatch.setitem(fsspec.config.conf, "s3", settings)
    with pytest.raises(
        StoreError,
        match=r'cannot write s3://bucket/.*: EndpointConnectionError: .*"http://127.0.0.1:9/bucket'
        r".*; check the store's endpoint and the network, then run again",
    ) as caught:
        stores.require_writable("s3://bucket/out?x")
    assert stores.is_transient(caught.value)


def test_require_writable_leaves_nothing(prefix: str) -> None:
    stores.write_bytes(stores.join(prefix, "x"), b"")
    stores.require_writable(prefix)
    assert [entry.key for entry in stores.list_entries(prefix)] == ["x"]


def test_require_writable_makes_no_folder(tmp_path: Path) -> None:
    stores.require_writable(str(tmp_path / "a" / "b"))
    assert list(tmp_path.iterdir()) == []


def test_unknown_scheme_says_so() -> None:
    with pytest.raises(StoreError, match=r"cannot open sss://bucket/x: .*sss"):
        stores.filesystem("sss://bucket/x")


def test_chains_are_read_through_every_store(prefix: str) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sub/a.txt", b"in the archive")
    place = stores.join(prefix, "x.zip")
    stores.write_bytes(place, archive.getvalue())

    assert stores.read_bytes(f"zip://sub/a.txt::{place}") == b"in the archive"
    assert stores.read_bytes(f"simplecache::{place}") == archive.getvalue()
    with pytest.raises(StoreError, match=r"cannot read zip://b\.txt::.*x\.zip: nothing there"):
        stores.read_bytes(f"zip://b.txt::{place}")


def test_errors_show_no_credentials() -> None:
    with pytest.raises(StoreError) as caught:
        stores.filesystem("sss://me:secret@bucket/x?token=secret")
    assert "secret" not in str(caught.value)


def test_a_file_in_the_way_is_not_taken_for_the_object(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(StoreError, match="folder"):
        stores.create_bytes(str(tmp_path / "folder" / "part"), b"data")
    with pytest.raises(StoreError, match="folder"):
        stores.write_bytes(str(tmp_path / "folder" / "part"), b"data")


@pytest.mark.parametrize("verb", ["read_bytes", "open_input", "exists", "list_entries", "stat"])
def test_host_that_cannot_be_reached_is_named(verb: str) -> None:
    """And not taken for an object that is missing, as fsspec's HTTP client tells it."""
    message = (
        r"cannot (read|list) http://127\.0\.0\.1:1/x\.jpg: 127\.0\.0\.1:1 cannot be reached: .*; "
        "check the store's endpoint and the network, then run again"
    )
    with pytest.raises(StoreUnavailable, match=message):
        getattr(stores, verb)("http://127.0.0.1:1/x.jpg")


def test_glob_on_a_host_that_cannot_be_reached() -> None:
    with pytest.raises(StoreUnavailable, match="cannot be reached"):
        stores.kind_of("http://127.0.0.1:1/*.jpg")


def test_s3_endpoint_that_cannot_be_reached_is_named_without_credentials() -> None:
    error = EndpointConnectionError(endpoint_url="http://me:hush@minio.local:9000/b?key=hush")
    with (
        pytest.raises(StoreUnavailable, match=r"minio\.local:9000 cannot be reached: ") as caught,
        stores.explained("s3://b/x", "read"),
    ):
        raise error
    assert "hush" not in str(caught.value)


def test_files_that_vanish_while_their_folder_is_listed_are_left_out(tmp_path) -> None:
    stays, goes, ended = tmp_path / "a", tmp_path / "b", threading.Event()
    stays.write_bytes(b"")

    def come_and_go() -> None:
        while not ended.is_set():
            goes.write_bytes(b"")
            goes.unlink()

    with ThreadPoolExecutor(1) as beside:
        job = beside.submit(come_and_go)
        try:
            for _ in range(3000):
                assert next(stores.list_entries(str(tmp_path))).key == "a"
                list(stores.list_entries(str(tmp_path)))
        finally:
            ended.set()
        job.result()
