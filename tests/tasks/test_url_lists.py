"""Lists of URLs, CSV or Parquet, become entries; what is wrong is told by its row."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from tasks import pages, url_lists
from tasks.pages import to_entries
from tasks.stores import UNKNOWN_SIZE, Entry, StoreError
from tests.tasks.containers import table_bytes
from tests.tasks.pictures import put


def entries(url: str) -> list[Entry]:
    return [entry for page in url_lists.rows(url) for entry in to_entries(page)]


def write(folder: Path, kind: str, columns: dict[str, list[Any]]) -> str:
    """A list with these columns; its URL."""
    if kind == "parquet":
        put(str(folder), {"list.parquet": table_bytes(pa.table(columns))})
    else:
        rows = zip(*columns.values(), strict=True)
        cells = [list(columns), *([("" if c is None else str(c)) for c in row] for row in rows)]
        lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
        put(str(folder), {"list.csv": "\r\n".join([*lines, ""]).encode("utf-8-sig")})
    return f"{folder}/list.{kind}"


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_urls_become_entries_sorted_by_key(tmp_path: Path, kind: str) -> None:
    urls = ["s3://b/z, 1.jpg", "https://host/日/a.jpg", "memory://x", "sub/a.jpg", "/abs/b.jpg"]
    url = write(tmp_path, kind, {"number": [1, 2, 3, 4, 5], "url": urls})

    found = entries(url)

    assert [(entry.key, entry.url) for entry in found] == [
        ("abs/b.jpg", "/abs/b.jpg"),
        ("b/z, 1.jpg", "s3://b/z, 1.jpg"),
        ("host/日/a.jpg", "https://host/日/a.jpg"),
        ("sub/a.jpg", f"{tmp_path}/sub/a.jpg"),
        ("x", "memory://x"),
    ]
    assert {(entry.size, entry.etag, entry.container) for entry in found} == {
        (UNKNOWN_SIZE, "", None)
    }


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_keys_sizes_and_versions_are_taken_where_they_are_given(tmp_path: Path, kind: str) -> None:
    columns = {
        "etag": ["v1", None, "v3"],
        "key": ['b"quoted"', "a", "c"],
        "size": [7, None, 9],
        "url": ["s3://x/1", "s3://x/2", "s3://x/3"],
    }
    assert entries(write(tmp_path, kind, columns)) == [
        Entry(key="a", url="s3://x/2", size=UNKNOWN_SIZE, etag=""),
        Entry(key='b"quoted"', url="s3://x/1", size=7, etag="v1"),
        Entry(key="c", url="s3://x/3", size=9, etag="v3"),
    ]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
@pytest.mark.parametrize(
    ("columns", "text"),
    [
        ({"uri": ["s3://x/1"], "k": [1]}, r"list\.\w+ has columns uri, k; expected url, and opt"),
        ({"key": ["a", "b"], "url": ["s3://x/1", ""]}, r"list\.\w+, row 2: has no url"),
        ({"key": ["a", None], "url": ["s3://x/1", "s3://x/2"]}, r"list\.\w+, row 2: has no key"),
        (
            {"key": ["b", "a", "b"], "url": ["s3://x/1", "s3://x/2", "s3://x/3"]},
            r"list\.\w+: the key b is there twice, row 1 and row 3; keys have to differ",
        ),
        (
            {"url": ["s3://x/?@#1.jpg", "https://me:secret@host/x.jpg"]},
            r"list\.\w+, row 2: https://host/x\.jpg was given with a user name",
        ),
        ({"url": ["https://host/x.jpg?sig=secret"]}, r"row 1: https://host/x\.jpg was given with"),
        (
            {"url": ["s3://x/1"], "size": ["many"]},
            r"list\.\w+ is no (CSV list|list of URLs): .*many",
        ),
    ],
)
def test_what_is_wrong_is_told_by_its_row(
    tmp_path: Path, kind: str, columns: dict[str, list[Any]], text: str
) -> None:
    with pytest.raises(StoreError, match=text) as caught:
        entries(write(tmp_path, kind, columns))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "has columns ; expected url"),
        (b"url,key\ns3://x/1,a\ns3://x/2\n", r"list\.csv is no CSV list: .*Expected 2 columns"),
        (b"url\ns3://x/\xe9.jpg\n", "invalid UTF8"),
        (b"url,key\nhttps://x/a?sig=secret\n", "Expected 2 columns, got 1: https://x/a$"),
    ],
)
def test_csv_that_is_none_is_refused(tmp_path: Path, data: bytes, text: str) -> None:
    put(str(tmp_path), {"list.csv": data})
    with pytest.raises(StoreError, match=text) as caught:
        entries(f"{tmp_path}/list.csv")
    assert "secret" not in str(caught.value)


def test_list_of_nothing_is_empty(tmp_path: Path) -> None:
    put(str(tmp_path), {"list.csv": b"url\n"})
    assert entries(f"{tmp_path}/list.csv") == []


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_long_lists_are_sorted_through_files(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pages, "SORT_ROWS", 1_000)
    urls = [f"s3://x/{number * 7919 % 5_000:04d}.jpg" for number in range(5_000)]
    found = entries(write(tmp_path, kind, {"url": urls}))
    assert [entry.url for entry in found] == sorted(urls)


def test_duplicates_far_apart_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SORT_ROWS", 100)
    urls = [f"s3://x/{number:04d}.jpg" for number in range(1_000)]
    url = write(tmp_path, "csv", {"url": [*urls, urls[3]]})
    with pytest.raises(StoreError, match=r"x/0003\.jpg is there twice, row 4 and row 1,001"):
        entries(url)
