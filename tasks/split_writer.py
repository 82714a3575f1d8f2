"""Rows of a dataset and the Parquet files they go to."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.dataset import BATCH_ROWS

_MAX_GROUP_BYTES = 64 * 1024 * 1024

_FEATURES = {
    "key": {"dtype": "string", "_type": "Value"},
    "image": {"_type": "Image"},
    "label": {"_type": "Image"},
    "height": {"dtype": "int32", "_type": "Value"},
    "width": {"dtype": "int32", "_type": "Value"},
}
_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("image", _FILE),
        ("label", _FILE),
        ("height", pa.int32()),
        ("width", pa.int32()),
    ],
    # What makes Hugging Face `datasets` show the two structs as images.
    metadata={"huggingface": json.dumps({"info": {"features": _FEATURES}})},
)
"""Columns of a dataset's Parquet files."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row to write.

    ``image`` are the bytes of an image file named ``image_path`` in its source, ``label``
    a palette PNG; ``height`` and ``width`` those of the oriented image; ``pixels`` int64
    of length C + 1: pixels per class, then ignored pixels.
    """

    key: str
    image: bytes
    image_path: str
    label: bytes
    height: int
    width: int
    pixels: np.ndarray


@dataclass
class SplitWriter:
    """Rows of one split on their way to numbered Parquet files."""

    folder: Path
    name: str
    max_file_bytes: int
    rows: int = 0
    paths: list[Path] = field(default_factory=list)
    pixels: np.ndarray | int = 0
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _writer: pq.ParquetWriter | None = None
    _file_bytes: int = 0
    _group: list[dict[str, Any]] = field(default_factory=list)
    _group_bytes: int = 0

    def add(self, row: Row) -> None:
        """Write one row; files and row groups end where they are large enough."""
        self.rows += 1
        self.pixels = self.pixels + row.pixels
        for content in (row.key.encode(), row.image, row.label):
            self.digest.update(len(content).to_bytes(8, "big") + content)
        self._group_bytes += len(row.image) + len(row.label)
        self._group.append(
            {
                "key": row.key,
                "image": {"bytes": row.image, "path": row.image_path},
                "label": {"bytes": row.label, "path": f"{row.key}.png"},
                "height": row.height,
                "width": row.width,
            }
        )
        full = self._file_bytes + self._group_bytes >= self.max_file_bytes
        if full or len(self._group) >= BATCH_ROWS or self._group_bytes >= _MAX_GROUP_BYTES:
            self._write_group()
        if full:
            self.close()

    def close(self) -> None:
        """End the present file."""
        if self._group:
            self._write_group()
        if self._writer is not None:
            self._writer.close()
            self._writer, self._file_bytes = None, 0

    def _write_group(self) -> None:
        if self._writer is None:
            self.paths.append(self.folder / f"{self.name}-{len(self.paths):05d}.parquet")
            # Images are compressed already; a page index lets a reader fetch one row.
            self._writer = pq.ParquetWriter(
                self.paths[-1],
                SCHEMA,
                compression="none",
                use_dictionary=False,
                write_page_index=True,
            )
        self._writer.write_table(pa.Table.from_pylist(self._group, SCHEMA))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0
