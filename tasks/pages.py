"""Entries by the page: Arrow tables of some thousand rows, sorted by key and streamed.

Sorted means by code point, which is also the order of the bytes of UTF-8. Sorting, merging
and comparing go by whole pages; memory holds a page of each stream, not the streams.
"""

import tempfile
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from tasks.listing import Entry
from tasks.stores import StoreError

PAGE_ROWS = 10_000
"""Rows of a page, about."""

SORT_ROWS = 50_000
"""Rows that are sorted in memory; more go through temporary files."""

_MERGE_ROWS = 2_000  # of each piece in memory

_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("key", pa.string()),
    pa.field("url", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
    pa.field("container", pa.string()),
    pa.field("offset", pa.int64()),
    pa.field("length", pa.int64()),
    pa.field("bands", pa.string()),
]

SCHEMA = pa.schema(_COLUMNS)
"""Columns of a page: the fields of an `Entry`."""


def to_page(entries: Sequence[Entry]) -> pa.Table:
    """A page of entries."""
    columns = {name: [getattr(entry, name) for entry in entries] for name in SCHEMA.names}
    return pa.table(columns, schema=SCHEMA)


def to_entries(page: pa.Table) -> Iterator[Entry]:
    """The entries of a page."""
    for values in zip(*(page[name].to_pylist() for name in SCHEMA.names), strict=True):
        yield Entry(**dict(zip(SCHEMA.names, values, strict=True)))


def complete(page: pa.Table) -> pa.Table:
    """A page of a manifest that lacks the columns for containers or bands, with empty ones."""
    for column in SCHEMA:
        if column.name not in page.schema.names:
            page = page.append_column(column, pa.nulls(page.num_rows, column.type))
    return page


def paged(entries: Iterable[Entry], num_rows: int = PAGE_ROWS) -> Iterator[pa.Table]:
    """Entries by the page."""
    rest = iter(entries)
    while page := list(islice(rest, num_rows)):
        yield to_page(page)


def rechunk(pages: Iterable[pa.Table], num_rows: int) -> Iterator[pa.Table]:
    """The same rows in pages of ``num_rows``; the last may be short."""
    waiting: list[pa.Table] = []
    count = 0
    for page in pages:
        waiting.append(page)
        count += page.num_rows
        while count >= num_rows:
            table = pa.concat_tables(waiting)
            yield table.slice(0, num_rows).combine_chunks()
            waiting, count = [table.slice(num_rows)], count - num_rows
    if count:
        yield pa.concat_tables(waiting).combine_chunks()


def require_rising(
    pages: Iterable[pa.Table], place: str, name: Callable[[pa.Table, int], str]
) -> Iterator[pa.Table]:
    """The same pages, in which every key is there once and after those before it.

    Args:
        pages: Sorted by key, as they should be.
        place: Where they come from, for the error.
        name: What a row of a page is called in the error.

    Raises:
        StoreError: a key that is there twice, or out of order; while iterating.
    """
    before: pa.Table | None = None
    for page in pages:
        if not page.num_rows:
            continue
        table = page if before is None else pa.concat_tables([before, page])
        rising: Any = pc.less(table["key"].slice(0, table.num_rows - 1), table["key"].slice(1))
        if pc.all(rising).as_py() is False:  # and not None, of a single row
            at = pc.index(rising, False).as_py()
            first, second = table["key"][at].as_py(), table["key"][at + 1].as_py()
            places = f"{name(table, at)} and {name(table, at + 1)}"
            if first == second:
                raise StoreError(
                    f"{place}: the key {first} is there twice, {places}; keys have to differ"
                )
            raise StoreError(f"{place}: {second} is listed after {first} ({places})")
        before = page.slice(page.num_rows - 1)
        yield page


def align(streams: Sequence[Iterable[pa.Table]]) -> Iterator[list[pa.Table | None]]:
    """Streams of pages, each sorted by ``key``, cut at the same keys.

    Every turn gives, for the next range of keys, the rows of each stream in it, or ``None``
    where it has none. All ranges together hold every row once, in order.
    """
    heads = [_Head(iter(stream)) for stream in streams]
    while lasts := [head.last for head in heads if head.page is not None]:
        bound = min(lasts)
        yield [head.take(bound) for head in heads]


class _Head:
    """The page of a stream that is cut next; ``None`` after the last one."""

    page: pa.Table | None
    last: str

    def __init__(self, pages: Iterator[pa.Table]) -> None:
        self._pages = pages
        self._show(None)

    def take(self, bound: str) -> pa.Table | None:
        """The rows of this page up to the key ``bound``."""
        page = self.page
        if page is None:
            return None
        if self.last <= bound:
            self._show(None)
            return page
        count = bisect_right(page["key"], bound, key=pa.StringScalar.as_py)
        self._show(page.slice(count))
        return page.slice(0, count) if count else None

    def _show(self, page: pa.Table | None) -> None:
        while page is None or not page.num_rows:
            page = next(self._pages, None)
            if page is None:
                break
        self.page = page
        self.last = page["key"][-1].as_py() if page is not None else ""


def sort(pages: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Pages sorted by ``key``; ``pages`` are read to their end before this returns.

    Up to `SORT_ROWS` rows are sorted in memory. More are sorted in pieces, which wait in
    temporary files, and merged.
    """
    with tempfile.TemporaryDirectory(prefix="fcn-sort-") as folder:
        files: list[pa.ipc.RecordBatchFileReader] = []
        pieces = rechunk(pages, SORT_ROWS)
        for number, piece in enumerate(pieces):
            table = piece.sort_by("key")
            if not number and table.num_rows < SORT_ROWS:
                return _split(table)
            files.append(_spill(table, Path(folder) / f"{number}.arrow"))
        return _merge(files)  # the files are unlinked here, and gone when they are closed


def _split(table: pa.Table) -> Iterator[pa.Table]:
    for start in range(0, table.num_rows, PAGE_ROWS):
        yield table.slice(start, PAGE_ROWS)


def _spill(table: pa.Table, path: Path) -> "pa.ipc.RecordBatchFileReader":
    """Write a sorted piece, and open it again."""
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_file(str(path), table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=_MERGE_ROWS)
    return pa.ipc.open_file(pa.OSFile(str(path), "r"))


def _merge(files: "Sequence[pa.ipc.RecordBatchFileReader]") -> Iterator[pa.Table]:
    for tables in align([_batches(file) for file in files]):
        there = [table for table in tables if table is not None]
        yield pa.concat_tables(there).sort_by("key").combine_chunks()


def _batches(file: "pa.ipc.RecordBatchFileReader") -> Iterator[pa.Table]:
    for number in range(file.num_record_batches):
        yield pa.Table.from_batches([file.get_batch(number)])
