"""Streams of pages are sorted, cut at the same keys, and checked, a page in memory at a time."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks import pages
from tasks.pages import align, paged, rechunk, require_rising, sort, to_entries, to_page
from tasks.stores import Entry, StoreError

_keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=3)
_streams = st.lists(st.lists(_keys, unique=True, max_size=12).map(sorted), max_size=4)


def page(keys: list[str], **columns: list[int]) -> pa.Table:
    return pa.table({"key": pa.array(keys, pa.string()), **columns})


def split(keys: list[str], sizes: list[int]) -> list[pa.Table]:
    """Keys in pages of these sizes, some of which are empty, the rest in one."""
    tables = []
    for size in sizes:
        tables.append(page(keys[:size]))
        keys = keys[size:]
    return [*tables, page(keys)]


@settings(deadline=None)
@given(streams=_streams, sizes=st.lists(st.integers(0, 4), max_size=4))
def test_aligned_streams_hold_every_row_once_in_ranges_that_follow_each_other(
    streams: list[list[str]], sizes: list[int]
) -> None:
    ranges = list(align([split(keys, sizes) for keys in streams]))

    for number, keys in enumerate(streams):
        tables = [tables[number] for tables in ranges]
        assert [key for t in tables if t is not None for key in t["key"].to_pylist()] == keys
    found = [
        sorted(key for t in tables if t is not None for key in t["key"].to_pylist())
        for tables in ranges
    ]
    assert all(found)
    assert all(before[-1] < after[0] for before, after in pairwise(found))


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 7), max_size=8), num_rows=st.integers(1, 5))
def test_rechunked_pages_hold_the_same_rows(sizes: list[int], num_rows: int) -> None:
    keys = [f"{number:03d}" for number in range(sum(sizes))]
    chunks = list(rechunk(split(keys, sizes), num_rows))
    assert [key for chunk in chunks for key in chunk["key"].to_pylist()] == keys
    assert all(chunk.num_rows == num_rows for chunk in chunks[:-1])


@pytest.mark.parametrize("num_rows", [0, 1, 99, 100, 101, 1_000])
def test_pages_are_sorted_in_memory_or_through_files(
    num_rows: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(pages, "SORT_ROWS", 100)
    monkeypatch.setattr(pages, "PAGE_ROWS", 30)
    monkeypatch.setattr(pages, "_MERGE_ROWS", 7)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    numbers = [number * 7919 % max(1, num_rows) for number in range(num_rows)]
    keys = [f"ü{number % 1000}-{number}" for number in numbers]
    given = (page(keys[at : at + 17], n=numbers[at : at + 17]) for at in range(0, num_rows, 17))

    found = list(sort(given))

    assert [key for table in found for key in table["key"].to_pylist()] == sorted(keys)
    rows = [row for table in found for row in table.to_pylist()]
    assert all(row["key"].endswith(f"-{row['n']}") for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_sorting_is_by_code_point() -> None:
    keys = ["a-b", "a/b", "a.b", "Z", "z", "é", "\ue000", "\U0001f642"]
    [found] = sort(iter([page(keys)]))
    assert found["key"].to_pylist() == sorted(keys)


def test_entries_go_through_pages_unchanged() -> None:
    entries = [
        Entry(key="a", url="u", size=1, etag="e"),
        Entry(key="b", url="v", size=-1, etag="", container="c", offset=7, length=9),
    ]
    assert [entry for one in paged(entries, 1) for entry in to_entries(one)] == entries
    assert list(to_entries(to_page([]))) == []


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ([["a", "b"], ["b"]], "list: the key b is there twice, row 1 and row 0; keys have to"),
        ([["a", "c", "b"]], r"list: b is listed after c \(row 1 and row 2\)"),
        ([["b"], [], ["a"]], r"list: a is listed after b"),
    ],
)
def test_keys_that_do_not_rise_are_refused_with_both_places(
    keys: list[list[str]], text: str
) -> None:
    tables = [page(one, at=list(range(len(one)))) for one in keys]
    with pytest.raises(StoreError, match=text):
        list(require_rising(tables, "list", lambda table, row: f"row {table['at'][row]}"))


def test_keys_that_rise_pass() -> None:
    tables = [page(["a"]), page([]), page(["b", "c"]), page(["d"])]
    found = list(require_rising(tables, "list", lambda table, row: ""))
    assert [key for table in found for key in table["key"].to_pylist()] == ["a", "b", "c", "d"]
