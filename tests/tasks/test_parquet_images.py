"""Images inside Parquet files: planned by the footer, read by row groups, damage told by row."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks import parquet_images, stores
from tasks.pages import to_entries
from tasks.read_errors import DamagedContainer, NoImageBytes, ObjectTooLarge
from tasks.reading import ObjectChanged, ObjectVanished, read_objects
from tasks.stores import Entry, StoreError
from tests.tasks.containers import parquet, table_bytes
from tests.tasks.pictures import put

IMAGES = [f"image {number} ".encode() * (number + 1) for number in range(50)]


@pytest.fixture(params=["local", "s3"])
def prefix(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path)
    return str(request.getfixturevalue("s3").new_bucket())


@pytest.fixture(autouse=True)
def nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that another test left open are not taken."""
    monkeypatch.setattr(parquet_images, "_idle", [])


def rows(url: str) -> list[Entry]:
    [file] = stores.list_entries(url)
    return [entry for page in parquet_images.rows(file) for entry in to_entries(page)]


def test_rows_are_keys_in_order_and_are_read_by_number(prefix: str) -> None:
    put(prefix, {"sub/x.parquet": parquet(IMAGES, rows=20)})
    found = rows(f"{prefix}/sub/x.parquet")

    assert [entry.key for entry in found] == [f"x.parquet/{row:09d}" for row in range(50)]
    assert [entry.offset for entry in found] == list(range(50))
    assert {entry.size for entry in found} == {stores.UNKNOWN_SIZE}
    assert found[0].length == pytest.approx(sum(map(len, IMAGES[:20])) / 20, rel=0.5)
    assert found[0].expected_bytes == found[0].length
    assert read_objects(found) == IMAGES
    assert read_objects(found[::-7]) == IMAGES[::-7]
    assert read_objects([found[3], found[45], found[3]]) == [IMAGES[3], IMAGES[45], IMAGES[3]]


@pytest.mark.parametrize(
    "column",
    [
        pa.array(IMAGES, pa.binary()),
        pa.array(IMAGES, pa.large_binary()),
        pa.array([{"path": "p", "bytes": data} for data in IMAGES]),
    ],
)
@pytest.mark.parametrize("name", ["image", "jpg"])
def test_bytes_are_found_in_columns_of_every_kind(
    tmp_path: Path, column: pa.Array, name: str
) -> None:
    table = pa.table({"label": list(range(50)), name: column, "caption": ["x"] * 50})
    pq.write_table(table, tmp_path / "x.parquet", compression="zstd")
    assert read_objects(rows(f"{tmp_path}/x.parquet")) == IMAGES


def test_column_named_image_goes_before_others(tmp_path: Path) -> None:
    table = pa.table({"label": [b"mask"], "image": [b"image"], "url": ["u"]})
    put(str(tmp_path), {"x.parquet": table_bytes(table)})
    assert read_objects(rows(f"{tmp_path}/x.parquet")) == [b"image"]


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"a": [1], "b": ["text"]}),
        pa.table({"left": [b"1"], "right": [b"2"]}),
        pa.table({"url": ["u"], "mask": [b"2"]}),
    ],
)
def test_file_without_images_says_what_was_expected(tmp_path: Path, table: pa.Table) -> None:
    put(str(tmp_path), {"x.parquet": table_bytes(table)})
    names = ", ".join(table.schema.names)
    with pytest.raises(StoreError, match=rf"x\.parquet has columns {names}; expected images in"):
        rows(f"{tmp_path}/x.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"no Parquet at all" * 9, b"PAR1" * 9])
def test_what_is_no_parquet_file_is_refused(tmp_path: Path, data: bytes) -> None:
    put(str(tmp_path), {"x.parquet": data})
    with pytest.raises(StoreError, match=r"x\.parquet is no Parquet file, or a damaged one"):
        rows(f"{tmp_path}/x.parquet")


def test_row_without_bytes_and_image_above_the_limit_are_reasons(tmp_path: Path) -> None:
    put(str(tmp_path), {"x.parquet": parquet([b"1", None, b"22"])})
    one, none, two = read_objects(rows(f"{tmp_path}/x.parquet"), max_bytes=1)
    assert one == b"1"
    assert isinstance(none, NoImageBytes)
    assert "row 1 holds no bytes in column image" in str(none)
    assert isinstance(two, ObjectTooLarge)


def test_windows_that_follow_each_other_read_every_row_group_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = [bytes([number]) * 1_000 for number in range(200)]
    put(str(tmp_path), {"x.parquet": parquet(images, rows=100)})
    monkeypatch.setattr(parquet_images, "BATCH_BYTES", 7_000)
    found = rows(f"{tmp_path}/x.parquet")
    num_bytes = [0]
    read = parquet_images.WatchedFile.read

    def count(self: Any, size: int = -1) -> bytes:
        data = read(self, size)
        num_bytes[0] += len(data)
        return data

    monkeypatch.setattr(parquet_images.WatchedFile, "read", count)
    windows = [read_objects(found[start : start + 9]) for start in range(0, 200, 9)]
    assert [data for window in windows for data in window] == images
    assert num_bytes[0] < 1.2 * (tmp_path / "x.parquet").stat().st_size + 100_000


def test_files_left_open_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_images, "MAX_OPEN", 3)
    for number in range(5):
        put(str(tmp_path), {f"{number}.parquet": parquet(IMAGES)})
        read_objects(rows(f"{tmp_path}/{number}.parquet")[:2])
    assert [file.url[-9:] for file in parquet_images._idle] == [f"{n}.parquet" for n in (2, 3, 4)]


def test_several_readers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    images = [bytes([number]) * 3_000 for number in range(120)]
    put(str(tmp_path), {"x.parquet": parquet(images, rows=50)})
    found = rows(f"{tmp_path}/x.parquet")
    barrier = threading.Barrier(4)

    def read(first: int) -> list[Any]:
        barrier.wait()
        return [
            data
            for start in range(first, first + 30, 4)
            for data in read_objects(found[start : min(start + 4, first + 30)])
        ]

    with ThreadPoolExecutor(4) as threads:
        parts = list(threads.map(read, range(0, 120, 30)))
    assert [data for part in parts for data in part] == images


def test_damaged_row_group_costs_its_rows_only(tmp_path: Path) -> None:
    images = [bytes([number]) * 2_000 for number in range(30)]
    data = bytearray(parquet(images, rows=10))
    metadata = pq.read_metadata(pa.BufferReader(bytes(data)))
    group = metadata.row_group(1)
    leaf = next(c for c in map(group.column, range(2)) if c.path_in_schema == "image.bytes")
    data[leaf.data_page_offset : leaf.data_page_offset + 30] = b"\xff" * 30
    put(str(tmp_path), {"x.parquet": bytes(data)})

    found = read_objects(rows(f"{tmp_path}/x.parquet"))

    assert found[:10] + found[20:] == images[:10] + images[20:]
    assert all(isinstance(one, DamagedContainer) for one in found[10:20])
    assert "row group 1 cannot be read" in str(found[10])


def test_file_that_changed_or_vanished_since_is_told(prefix: str) -> None:
    put(prefix, {"x.parquet": parquet([b"old", b"2"])})
    found = rows(f"{prefix}/x.parquet")
    read_objects(found[:1])  # the file is open from now on
    put(prefix, {"x.parquet": parquet([b"new", b"3"])})
    assert all(isinstance(one, ObjectChanged) for one in read_objects(found))
    stores.remove(f"{prefix}/x.parquet")
    assert all(isinstance(one, ObjectVanished) for one in read_objects(found))
