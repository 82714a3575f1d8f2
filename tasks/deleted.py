"""Keys that have a row, but were no longer in the collection when it was last listed.

::

    manifest/deleted.parquet     key, run (of the newest row at that time: compact may have
                                 merged it since), sorted by key; not there when there are
                                 no such keys

Their rows and masks stay, for a run takes nothing back. The file is written anew whenever the
collection is listed over an output; a reader who wants the collection as it is leaves these
keys out.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tasks import stores

_COLUMNS: "list[pa.Field[Any]]" = [pa.field("key", pa.string()), pa.field("run", pa.int32())]

SCHEMA = pa.schema(_COLUMNS)


def deleted_url(output_url: str) -> str:
    """Where the deleted keys of an output are."""
    return stores.join(output_url, "manifest", "deleted.parquet")


def count(output_url: str) -> int:
    """Number of the deleted keys by the last listing.

    Raises:
        StoreError: they cannot be read.
    """
    url = deleted_url(output_url)
    if not stores.exists(url):
        return 0
    with stores.open_input(url) as file:
        return int(pq.read_metadata(file).num_rows)


class Draft:
    """The deleted keys of an output, while they are being found: a context manager."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with stores.explained(str(path), "write"):
            self._writer = pq.ParquetWriter(path, SCHEMA, compression="zstd")
        self.num_rows = 0

    def __enter__(self) -> "Draft":
        return self

    def __exit__(self, *_: object) -> None:
        with stores.explained(str(self._path), "write"):
            self._writer.close()

    def add(self, rows: pa.Table) -> None:
        """Add rows that have the columns of `SCHEMA`, in the order of their keys.

        Raises:
            StoreError: the temporary folder is full.
        """
        with stores.explained(str(self._path), "write"):
            self._writer.write_table(rows.select(SCHEMA.names).cast(SCHEMA))
        self.num_rows += rows.num_rows

    def publish(self, output_url: str) -> None:
        """Put them in the place of those of the last listing.

        Raises:
            StoreError: the output cannot be written.
        """
        with stores.explained(str(self._path), "write"):
            self._writer.close()
        url = deleted_url(output_url)
        if self.num_rows:
            stores.replace_file(url, self._path)
        elif stores.exists(url):
            stores.remove(url)
