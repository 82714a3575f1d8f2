"""Lists of images: a CSV or Parquet file with a row for each.

::

    url                          where the image is; without a scheme and a slash in front,
                                 below the folder of the list
    key     (may be missing)     else the URL without its scheme
    size    (may be missing)     bytes; else an image is read whatever its size
    etag    (may be missing)     else a changed image is not noticed

Further columns are not read. Sorted by key, whatever the order of the list; memory holds no
more than `tasks.pages.SORT_ROWS` rows, the rest waits in temporary files.
"""

from collections.abc import Iterable, Iterator, Sequence
from csv import reader as csv_lines
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from tasks import stores
from tasks.pages import PAGE_ROWS, SCHEMA, require_rising, sort
from tasks.parquet_images import WatchedFile, open_parquet
from tasks.stores import UNKNOWN_SIZE, StoreError

MAX_LINE_BYTES = 4 << 20
"""A line of a CSV list is not longer."""

MAX_HEADER_BYTES = 64 << 10
"""Nor is its first one, which names the columns."""

_COLUMNS: "dict[str, pa.DataType]" = {
    "url": pa.string(),
    "key": pa.string(),
    "size": pa.int64(),
    "etag": pa.string(),
}
_SCHEME = r"^[A-Za-z][A-Za-z0-9+.\-]*://"


def rows(list_url: str) -> Iterator[pa.Table]:
    """The images of a list as pages of entries, sorted by key.

    Raises:
        StoreError: a list without a column url, a row without a URL or with one that holds
            credentials, a key that is there twice; also while iterating.
    """
    tables = (_parquet if list_url.lower().endswith(".parquet") else _csv)(list_url)
    sorted_rows = sort(_pages(tables, list_url))
    for page in require_rising(sorted_rows, stores.redact(list_url), _name_row):
        yield page.drop_columns("row")


def _csv(list_url: str) -> Iterator[pa.Table]:
    place = stores.redact(list_url)
    with stores.open_input(list_url) as file:
        columns = _columns(_csv_header(file), place)
        file.seek(0)
        reading = csv.ReadOptions(use_threads=False, block_size=MAX_LINE_BYTES)
        converting = csv.ConvertOptions(
            column_types={name: _COLUMNS[name] for name in columns}, include_columns=columns
        )
        try:
            with csv.open_csv(file, read_options=reading, convert_options=converting) as reader:
                for batch in reader:
                    yield pa.Table.from_batches([batch])
        except pa.ArrowInvalid as error:
            text = stores.redact_text(str(error))  # it quotes the row
            raise StoreError(f"{place} is no CSV list: {text}") from None


def _csv_header(file: Any) -> list[str]:
    line = file.read(MAX_HEADER_BYTES).partition(b"\n")[0].decode("utf-8-sig", "replace")
    return next(csv_lines([line.rstrip("\r")]), [])


def _parquet(list_url: str) -> Iterator[pa.Table]:
    place = stores.redact(list_url)
    with stores.open_input(list_url) as opened:
        watched = WatchedFile(opened)
        parquet = open_parquet(watched, list_url)
        columns = _columns(parquet.schema_arrow.names, place)
        schema = pa.schema({name: _COLUMNS[name] for name in columns})
        try:
            for batch in parquet.iter_batches(
                batch_size=PAGE_ROWS, columns=columns, use_threads=False
            ):
                yield pa.Table.from_batches([batch]).select(columns).cast(schema)
        except (pa.ArrowException, OSError) as error:
            if watched.error is not None:
                raise watched.error from error
            raise StoreError(f"{place} is no list of URLs: {error}") from error


def _columns(names: Sequence[str], place: str) -> list[str]:
    if "url" not in names:
        raise StoreError(
            f"{place} has columns {', '.join(names)}; expected url, and optionally key, size "
            "and etag"
        )
    return [name for name in _COLUMNS if name in names]


def _pages(tables: Iterable[pa.Table], list_url: str) -> Iterator[pa.Table]:
    """The rows as entries, with the number of each, from 1, in a column ``row``."""
    first = 1
    for table in tables:
        numbers = pa.array(range(first, first + table.num_rows), pa.int64())
        yield _page(table, list_url, first).append_column("row", numbers)
        first += table.num_rows


def _page(table: Any, list_url: str, first: int) -> pa.Table:
    place, size = stores.redact(list_url), table.num_rows
    written = table["url"].combine_chunks()
    _require(_is_there(written), place, first, "has no url")
    url = _absolute(written, list_url)
    to_check: Any = pc.match_substring_regex(url, "[@?#]")
    for row in pc.indices_nonzero(to_check).tolist():
        _require_no_credentials(url[row].as_py(), place, first + row)
    key = table["key"].combine_chunks() if "key" in table.schema.names else _key_of(written)
    _require(_is_there(key), place, first, "has no key")
    given = set(table.schema.names)
    columns = {
        "key": key,
        "url": url,
        "size": table["size"].fill_null(UNKNOWN_SIZE) if "size" in given else [UNKNOWN_SIZE] * size,
        "etag": table["etag"].fill_null("") if "etag" in given else [""] * size,
        "container": [None] * size,
        "offset": [None] * size,
        "length": [None] * size,
        "bands": [None] * size,
    }
    return pa.table(columns, schema=SCHEMA)


def _absolute(url: Any, list_url: str) -> Any:
    """URLs without a scheme and a slash in front are below the folder of the list."""
    folder, slash, _ = list_url.rpartition("/")
    is_absolute = pc.match_substring_regex(url, f"{_SCHEME}|^[/~]|::")
    below: Any = pc.binary_join_element_wise(pa.scalar(folder + slash), url, pa.scalar(""))
    result: Any = pc.if_else(is_absolute, url, below)
    return result


def _key_of(url: Any) -> Any:
    """``bucket/photos/a.jpg`` for ``s3://bucket/photos/a.jpg``."""
    return pc.utf8_ltrim(pc.replace_substring_regex(url, _SCHEME, ""), "/")


def _is_there(column: Any) -> Any:
    is_text: Any = pc.not_equal(column, pa.scalar(""))
    return is_text.fill_null(False)


def _require(good: Any, place: str, first: int, fault: str) -> None:
    if not pc.all(good).as_py():
        row = first + pc.index(good, False).as_py()
        raise StoreError(f"{place}, row {row:,}: {fault}")


def _require_no_credentials(url: str, place: str, row: int) -> None:
    try:
        stores.require_no_credentials(url)
    except StoreError as error:
        raise StoreError(f"{place}, row {row:,}: {error}") from None


def _name_row(page: pa.Table, index: int) -> str:
    return f"row {page['row'][index].as_py():,}"
