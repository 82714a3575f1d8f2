"""Parts are the commit, plain Parquet for every reader, and the newest row of a key wins."""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from fcn.masks import MaskFormat, decode_mask, encode_mask
from tasks import part_file, parts, stores
from tasks.part_file import Row
from tasks.stores import Entry, StoreError
from tests.tasks.pictures import CLASSES

LABEL = np.array([[0, 1, 2], [2, 2, 1]], np.uint8)


def row(key: str, *, mask_format: MaskFormat = "png", **fields: Any) -> Row:
    entry = Entry(key=key, url=f"memory://c/{key}", size=10, etag="e1")
    given: dict[str, Any] = {
        "status": "ok",
        "height": 2,
        "width": 3,
        "mask": encode_mask(LABEL, CLASSES.palette, mask_format=mask_format),
        "mask_path": f"{key}.png" if mask_format == "png" else None,
        "class_pixels": [1, 2, 3],
        "confidence": 0.75,
    }
    return Row(entry=entry, **{**given, **fields})


def failed(key: str, error_class: str = "CorruptImage") -> Row:
    entry = Entry(key=key, url=f"memory://c/{key}", size=stores.UNKNOWN_SIZE, etag="e1")
    return Row(entry=entry, status="failed", error_class=error_class, error="why")


def commit(
    output_url: str,
    rows: Iterable[Row],
    *,
    run: int = 0,
    number: int = 0,
    mask_format: MaskFormat = "png",
) -> bytes:
    rows = list(rows)
    part = part_file.summarise(rows, run=run, number=number, run_digest=f"digest{run}")
    data = part_file.encode(rows, part, mask_format)
    stores.create_bytes(parts.part_url(output_url, run, number), data)
    return data


@pytest.fixture
def output(tmp_path: Path) -> str:
    """An output of two parts and an index."""
    url = str(tmp_path / "out")
    commit(url, [row("a b/1.jpg"), failed("a b/2.jpg")])
    commit(url, [row("é.jpg", status="partial"), row("日.jpg")], number=1)
    parts.write_index(url, CLASSES)
    return url


def test_columns_are_those_of_the_contract(output: str) -> None:
    file = pq.ParquetFile(Path(output, "parts", "run=00000", "part-00000.parquet"))
    assert [f"{field.name}: {field.type}" for field in file.schema_arrow] == [
        "key: string",
        "url: string",
        "size: int64",
        "etag: string",
        "height: int32",
        "width: int32",
        "status: string",
        "error_class: string",
        "error: string",
        "mask: struct<bytes: binary, path: string>",
        "class_pixels: list<element: int64>",
        "confidence: float",
        "run_digest: string",
    ]


def test_masks_are_stored_for_random_access(tmp_path: Path) -> None:
    data = commit(str(tmp_path), [row(f"{number:05d}") for number in range(1200)])
    metadata = pq.ParquetFile(io.BytesIO(data)).metadata
    columns = [metadata.row_group(0).column(index) for index in range(metadata.num_columns)]
    by_path = {column.path_in_schema: column for column in columns}

    assert [metadata.row_group(index).num_rows for index in range(3)] == [500, 500, 200]
    assert by_path["mask.bytes"].compression == "UNCOMPRESSED"
    assert not by_path["mask.bytes"].has_dictionary_page
    assert all(column.has_offset_index for column in columns)
    assert by_path["class_pixels.list.element"].compression == "ZSTD"


def test_same_rows_give_the_same_bytes(tmp_path: Path) -> None:
    rows = [row("a"), failed("b")]
    assert commit(str(tmp_path / "1"), rows) == commit(str(tmp_path / "2"), rows)


def test_footer_counts_by_status(tmp_path: Path) -> None:
    rows = [row("a"), row("b", status="partial"), failed("c"), failed("d", "ObjectVanished")]
    part = part_file.read_card(io.BytesIO(commit(str(tmp_path), rows, run=3, number=7)))
    assert (part.run, part.number, part.rows) == (3, 7, 4)
    assert (part.ok, part.partial, part.failed, part.unread) == (1, 1, 2, 1)
    assert part.run_digest == "digest3"
    assert part.class_pixels == (2, 4, 6)
    assert parts.other_digests(str(tmp_path), part) == {"d": ""}


def test_index_tells_what_there_is(output: str) -> None:
    index = json.loads(Path(output, "_index.json").read_text("utf-8"))
    assert (index["run"], index["run_digest"], index["rows"]) == (0, "digest0", 4)
    assert index["counts"] == {"ok": 2, "partial": 1, "failed": 1}
    assert [part["path"] for part in index["parts"]] == [
        "parts/run=00000/part-00000.parquet",
        "parts/run=00000/part-00001.parquet",
    ]
    assert index["classes"][1] == {"id": 1, "name": "medium", "colour": [128, 128, 0]}
    assert index["palette"] == [[0, 0, 0], [128, 128, 0], [0, 128, 255]]


def test_index_is_known_to_lack_a_part(output: str) -> None:
    assert parts.is_indexed(output)
    commit(output, [row("new")], number=2)
    assert not parts.is_indexed(output)
    assert [part.number for part in parts.committed(output)] == [0, 1, 2]


def test_foreign_files_are_no_parts(output: str) -> None:
    Path(output, "parts", "run=00000", ".0123.tmp").write_bytes(b"left by a killed writer")
    Path(output, "parts", "notes.txt").write_bytes(b"")
    assert parts.listed(output) == {0: [0, 1]}
    assert (parts.numbers(output, 0), parts.numbers(output, 1)) == ([0, 1], [])
    assert parts.read(output).count_rows() == 4


def test_damaged_part_and_index_say_so(output: str) -> None:
    Path(output, "parts", "run=00000", "part-00002.parquet").write_bytes(b"PAR1")
    with pytest.raises(StoreError, match=r"part-00002\.parquet is no part of ours"):
        parts.committed(output)
    Path(output, "_index.json").write_text('{"parts": 3}')
    with pytest.raises(StoreError, match=r"_index\.json is no index of ours"):
        parts.committed(output)


def test_output_without_parts_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=f"no parts at {tmp_path}"):
        parts.read(str(tmp_path))


@pytest.mark.parametrize("store", ["local", "memory", "s3"])
def test_newest_row_of_every_key_is_read(
    store: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if store == "s3":
        url = request.getfixturevalue("s3").new_bucket() + "/out"
    else:
        url = str(tmp_path) if store == "local" else f"memory://{tmp_path}"
    commit(url, [row("a"), row("b")])
    commit(url, [row("c"), row("d")], number=1)
    commit(url, [failed("b"), row("e")], run=1)
    commit(url, [row(key, mask_format="rle") for key in "bcd"], run=2, mask_format="rle")

    table = parts.read(url).to_table().sort_by("key")

    assert table["key"].to_pylist() == ["a", "b", "c", "d", "e"]
    assert table["run"].to_pylist() == [0, 2, 2, 2, 1]
    for one in table.to_pylist():
        mask = one["mask_rle"] if one["run"] == 2 else one["mask"]["bytes"]
        assert (decode_mask(mask) == LABEL).all()
    assert parts.read(url).count_rows() == 5


def test_part_that_was_replaced_as_a_whole_is_not_opened(tmp_path: Path) -> None:
    url = str(tmp_path)
    commit(url, [row("a")])
    commit(url, [row("b")], number=1)
    commit(url, [row("a")], run=1)
    assert sorted(Path(file).name for file in parts.read(url).files) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert not any("run=00000/part-00000" in file for file in parts.read(url).files)


def test_failures_are_the_first_ones(output: str) -> None:
    assert parts.failures(output, 0, limit=20) == [
        {"key": "a b/2.jpg", "error_class": "CorruptImage", "error": "why"}
    ]
    assert parts.failures(output, 1, limit=20) == []


def test_duckdb_reads_the_parts(output: str) -> None:
    query = f"SELECT key, status, mask.bytes FROM '{output}/parts/**/*.parquet' ORDER BY key"
    found = duckdb.sql(query).fetchall()
    assert [(key, status) for key, status, _ in found] == [
        ("a b/1.jpg", "ok"),
        ("a b/2.jpg", "failed"),
        ("é.jpg", "partial"),
        ("日.jpg", "ok"),
    ]
    assert (decode_mask(found[0][2]) == LABEL).all()


def test_duckdb_reads_the_newest_row_of_every_key(output: str) -> None:
    commit(output, [row("é.jpg")], run=1)
    query = f"""
        SELECT key, status, run::INT FROM '{output}/parts/**/*.parquet'
        QUALIFY row_number() OVER (PARTITION BY key ORDER BY run DESC) = 1 ORDER BY key
    """
    newest = parts.read(output).to_table(columns=["key", "status", "run"]).sort_by("key")
    assert duckdb.sql(query).fetchall() == [tuple(one.values()) for one in newest.to_pylist()]


def test_pandas_reads_the_parts(output: str) -> None:
    frame = pd.read_parquet(f"{output}/parts")
    assert list(frame["key"]) == ["a b/1.jpg", "a b/2.jpg", "é.jpg", "日.jpg"]
    assert frame["status"].value_counts().to_dict() == {"ok": 2, "partial": 1, "failed": 1}


def test_pillow_opens_a_mask_with_its_colours(output: str) -> None:
    [one] = pq.read_table(
        f"{output}/parts/run=00000/part-00000.parquet", filters=[("key", "=", "a b/1.jpg")]
    )["mask"].to_pylist()
    with Image.open(io.BytesIO(one["bytes"])) as image:
        assert (np.asarray(image) == LABEL).all()
        assert image.convert("RGB").getpixel((1, 0)) == CLASSES.palette[1]


def test_hugging_face_datasets_shows_masks_as_images(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import datasets

    found = datasets.load_dataset(
        "parquet",
        data_files=f"{output}/parts/**/*.parquet",
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert isinstance(found.features["mask"], datasets.Image)
    assert found["key"][:2] == ["a b/1.jpg", "a b/2.jpg"]
    assert (np.asarray(found[0]["mask"]) == LABEL).all()
    assert found[1]["mask"] is None
    assert found[0]["class_pixels"] == [1, 2, 3]


def test_run_lengths_are_a_column_of_their_own(tmp_path: Path) -> None:
    data = commit(str(tmp_path), [row("a", mask_format="rle"), failed("b")], mask_format="rle")
    table = pq.read_table(io.BytesIO(data))
    assert "mask" not in table.column_names
    assert (decode_mask(table["mask_rle"][0].as_py()) == LABEL).all()
    assert table["mask_rle"][1].as_py() is None
    assert table.schema.field("mask_rle").type == pa.binary()
