"""Images inside Parquet files, as Hugging Face ``datasets`` keeps them: a row is an image.

The bytes are in a column ``image``, or in the only one of its kind where there is no column
``url``: a struct with the field ``bytes``, or binary. The key of an image is ``FILE/ROW``:
the key of the file, and the number of the row in nine digits, from 0. So keys follow the
rows, and what there is to do is read off the footers alone.

A page of a Parquet file is compressed as a whole, so there are no byte ranges of single
images. A file is read from a row on, and stays open for who asks for the next ones: shards
are contiguous rows, so every row group is read about once.

A column ``band_NAME`` of the same kind holds the files of a band (`fcn.bands`).
"""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tasks import stores
from tasks.pages import PAGE_ROWS, to_page
from tasks.read_errors import DamagedContainer, NoImageBytes, ReadError, too_large
from tasks.stores import UNKNOWN_SIZE, Entry, StoreError

BATCH_BYTES = 8 << 20
"""Bytes of the images that are decoded from a file at once, about; at least one image."""

MAX_OPEN = 8
"""Files that stay open for the next rows."""

_BLOCK_BYTES = 4 << 20
_MAX_BATCH_ROWS = 1000

_idle: "list[_Rows]" = []  # the one used last at the end
_lock = threading.Lock()


def image_columns(schema: pa.Schema) -> list[str]:
    """Names of the columns that hold bytes, as images do."""
    return [column.name for column in schema if _holds_bytes(column.type)]


def rows(file: Entry, bands: Sequence[str] = ()) -> Iterator[pa.Table]:
    """The images of a Parquet file as pages of entries, by its footer alone.

    Args:
        file: The file.
        bands: Names of bands that will be read with the images: ``length`` counts them.

    Raises:
        StoreError: no Parquet file, or one without images.
    """
    with stores.open_input(file.url) as opened:
        parquet = open_parquet(WatchedFile(opened), file.url)
        _, leaf = _column(parquet.schema_arrow, file.url)
        leaves = [leaf, *(f"band_{b}{end}" for b in bands for end in ("", ".bytes"))]
        first = 0
        for number in range(parquet.metadata.num_row_groups):
            group = parquet.metadata.row_group(number)
            length = sum(_mean_bytes(group, leaf) for leaf in leaves)
            for start in range(first, first + group.num_rows, PAGE_ROWS):
                end = min(start + PAGE_ROWS, first + group.num_rows)
                yield to_page(
                    [
                        replace(
                            file,
                            key=f"{file.key}/{row:09d}",
                            size=UNKNOWN_SIZE,
                            container=file.url,
                            offset=row,
                            length=length,
                        )
                        for row in range(start, end)
                    ]
                )
            first += group.num_rows


def read_rows(url: str, entries: Sequence[Entry], max_bytes: int) -> list[bytes | ReadError]:
    """The bytes of images of one Parquet file, as `rows` gives them.

    Args:
        url: The file.
        entries: Its images, in any order; ascending rows are read fastest. All have the same
            ``column``.
        max_bytes: Larger images are left out.

    Raises:
        StoreError: no Parquet file; or an error of the store's client.
    """
    if not entries:
        return []
    order = sorted(range(len(entries)), key=lambda index: entries[index].offset or 0)
    first = entries[order[0]]
    reader = _take_idle(url, first) or _Rows(url, first.etag, first.column)
    found: dict[int, bytes | ReadError] = {}
    if not reader.has_column:
        reader.close()
        return [NoImageBytes(f"there is no column {first.column} of bytes")] * len(entries)
    try:
        for index in order:
            found[index] = reader.read(entries[index].offset or 0, max_bytes)
    except BaseException:
        reader.close()
        raise
    _keep_idle(reader)
    return [found[index] for index in range(len(entries))]


class _Rows:
    """An open file, and the batch of its rows that was read last."""

    def __init__(self, url: str, etag: str, column: str | None = None) -> None:
        self.url, self.etag, self.column = url, etag, column
        self._file = WatchedFile(stores.open_input(url, block_size=_BLOCK_BYTES))
        try:
            self._parquet = open_parquet(self._file, url)
            self._name, self._leaf = _column(self._parquet.schema_arrow, url, column)
        except BaseException:
            self._file.close()
            raise
        self._groups = _group_bounds(self._parquet.metadata)
        self._damaged: dict[int, DamagedContainer] = {}
        self._open_group(-1)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    @property
    def has_column(self) -> bool:
        """Whether there is the column that was asked for."""
        return bool(self._leaf)

    def gap(self, row: int) -> int | None:
        """Rows to be read before ``row``; ``None`` where it is behind or in another group."""
        behind = row < self._first or row >= self._groups[self._group][1]
        return None if self._group < 0 or behind else row - self._first

    def read(self, row: int, max_bytes: int) -> bytes | ReadError:
        """The bytes of the image in a row, or why there are none."""
        if self.gap(row) is None:
            group = next((n for n, (_, end) in enumerate(self._groups) if row < end), None)
            if group is None:
                return DamagedContainer(f"row {row:,} of {self._groups[-1][1]:,} in {self.url}")
            self._open_group(group)
        if self._group in self._damaged:
            return self._damaged[self._group]
        try:
            while row >= self._first + len(self._values):
                self._next_batch()
        except (pa.ArrowException, OSError, StopIteration) as error:
            if self._file.error is not None:
                raise self._file.error from error
            text = str(error) or "it ends early"
            damage = DamagedContainer(f"row group {self._group} cannot be read: {text}")
            return self._damaged.setdefault(self._group, damage)
        value = self._values[row - self._first]
        if not value.is_valid:
            return NoImageBytes(f"row {row:,} holds no bytes in column {self._name}")
        size = value.as_buffer().size
        if size > max_bytes:
            return too_large(f"{size:,}", max_bytes)
        return bytes(value.as_buffer())

    def _open_group(self, group: int) -> None:
        self._group = group
        self._values: Any = ()
        if group < 0:
            self._first = 0
            return
        self._first = self._groups[group][0]
        mean = max(1, _mean_bytes(self._parquet.metadata.row_group(group), self._leaf))
        self._batches = self._parquet.iter_batches(
            batch_size=max(1, min(_MAX_BATCH_ROWS, BATCH_BYTES // mean)),
            row_groups=[group],
            columns=[self._leaf],
            use_threads=False,
        )

    def _next_batch(self) -> None:
        self._first += len(self._values)
        self._values = ()
        column = next(self._batches).column(0)
        if pa.types.is_struct(column.type):
            column = pc.struct_field(column, "bytes")  # null where the struct is null
        self._values = column


class WatchedFile:
    """A file object that keeps the error of its store, which ``pyarrow`` may rephrase."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.error: Exception | None = None

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on."""
        try:
            return bytes(self._file.read(size))
        except Exception as error:
            self.error = error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def open_parquet(file: Any, url: str) -> pq.ParquetFile:
    """A Parquet file, of which no more is read at once than a page.

    Args:
        file: A `WatchedFile`.
        url: Where it is.

    Raises:
        StoreError: no Parquet file; or an error of the store's client.
    """
    try:
        return pq.ParquetFile(
            file, buffer_size=1 << 20, pre_buffer=False, page_checksum_verification=True
        )
    except (pa.ArrowException, OSError) as error:
        if file.error is not None:
            raise file.error from error
        raise StoreError(
            f"{stores.redact(url)} is no Parquet file, or a damaged one: {error}; mend it, or "
            "leave it out with an exclude pattern"
        ) from error


def _column(schema: pa.Schema, url: str, column: str | None = None) -> tuple[str, str]:
    """The column of images, and the leaf of the file that holds their bytes.

    Of another ``column`` that is not there, or holds no bytes, there is no leaf.
    """
    found = image_columns(schema)
    if column is not None:
        return column, _leaf(schema, column) if column in found else ""
    found = [name for name in found if not name.startswith("band_")] or found
    if "image" not in found and (len(found) != 1 or "url" in schema.names):
        raise StoreError(
            f"{stores.redact(url)} has columns {', '.join(schema.names)}; expected images in a "
            "column image of type struct<bytes: binary, path: string> or binary, or in a single "
            "column of this kind and no column url; name it image, or leave the file out with "
            "an exclude pattern"
        )
    name = "image" if "image" in found else found[0]
    return name, _leaf(schema, name)


def _leaf(schema: pa.Schema, name: str) -> str:
    return f"{name}.bytes" if pa.types.is_struct(schema.field(name).type) else name


def _holds_bytes(column: pa.DataType) -> bool:
    if pa.types.is_struct(column):
        index = column.get_field_index("bytes")
        return index >= 0 and _holds_bytes(column.field(index).type)
    return pa.types.is_binary(column) or pa.types.is_large_binary(column)


def _group_bounds(metadata: pq.FileMetaData) -> list[tuple[int, int]]:
    """First row, and the row after the last one, of each row group."""
    sizes = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    ends = list(accumulate(sizes))
    return list(zip([0, *ends], ends, strict=False))


def _mean_bytes(group: pq.RowGroupMetaData, leaf: str) -> int:
    """Mean bytes of an image in a row group."""
    columns = (group.column(number) for number in range(group.num_columns))
    size = sum(one.total_uncompressed_size for one in columns if one.path_in_schema == leaf)
    return size // max(1, group.num_rows)


def _take_idle(url: str, first: Entry) -> _Rows | None:
    """The open file that comes to the row of ``first`` soonest, from now on the caller's."""
    with _lock:
        gaps = {
            gap: reader
            for reader in _idle
            if (reader.url, reader.etag, reader.column) == (url, first.etag, first.column)
            and (gap := reader.gap(first.offset or 0)) is not None
        }
        if not gaps:
            return None
        reader = gaps[min(gaps)]
        _idle.remove(reader)
        return reader


def _keep_idle(reader: _Rows) -> None:
    with _lock:
        _idle.append(reader)
        if len(_idle) > MAX_OPEN:
            _idle.pop(0).close()
