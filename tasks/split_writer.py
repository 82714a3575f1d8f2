"""Rows of a dataset and the Parquet files they go to."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.dataset import BATCH_ROWS

_MAX_GROUP_BYTES = 64 * 1024 * 1024

_IMAGE = {"_type": "Image"}
_FILE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def schema(heads: Sequence[str] = (), bands: Sequence[str] = ()) -> pa.Schema:
    """Columns of a dataset's Parquet files.

    Args:
        heads: Names of further heads, each of which has a column of labels.
        bands: Names of bands, each of which has a column of encoded files.
    """
    further = [f"label_{head}" for head in heads]
    features = {
        "key": {"dtype": "string", "_type": "Value"},
        "image": _IMAGE,
        "label": _IMAGE,
        "height": {"dtype": "int32", "_type": "Value"},
        "width": {"dtype": "int32", "_type": "Value"},
        **dict.fromkeys(further, _IMAGE),
        **{f"band_{band}": {"dtype": "binary", "_type": "Value"} for band in bands},
    }
    return pa.schema(
        [
            ("key", pa.string()),
            ("image", _FILE),
            ("label", _FILE),
            ("height", pa.int32()),
            ("width", pa.int32()),
            *((name, _FILE) for name in further),
            *((f"band_{band}", pa.binary()) for band in bands),
        ],
        # What makes Hugging Face `datasets` show the structs as images.
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FurtherLabel:
    """The label of a further head: a palette PNG, None where the image is not labelled for it.

    ``pixels`` are those per class, then ignored ones; all are ignored without a label.
    """

    label: bytes | None
    pixels: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class BandFile:
    """A band of a sample: the bytes of its file, its path in the source, dtype of its values.

    ``moments`` are number, sum and sum of squares of those that are finite, float64.
    """

    data: bytes
    path: str
    dtype: str
    moments: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row to write.

    ``image`` are the bytes of an image file named ``image_path`` in its source, ``label``
    a palette PNG; ``height`` and ``width`` those of the oriented image; ``pixels`` int64
    of length C + 1: pixels per class, then ignored pixels. ``further`` are the labels of
    further heads, by name, and ``bands`` its bands.
    """

    key: str
    image: bytes
    image_path: str
    label: bytes
    height: int
    width: int
    pixels: np.ndarray
    further: Mapping[str, FurtherLabel] = field(default_factory=dict)
    bands: Mapping[str, BandFile] = field(default_factory=dict)


@dataclass
class SplitWriter:
    """Rows of one split on their way to numbered Parquet files; ``heads`` are further ones.

    ``band_moments`` and ``band_dtypes`` tell of all bands of the split, by name.
    """

    folder: Path
    name: str
    max_file_bytes: int
    heads: Sequence[str] = ()
    bands: Sequence[str] = ()
    rows: int = 0
    paths: list[Path] = field(default_factory=list)
    pixels: np.ndarray | int = 0
    further_pixels: dict[str, np.ndarray] = field(default_factory=dict)
    band_moments: dict[str, np.ndarray] = field(default_factory=dict)
    band_dtypes: dict[str, str] = field(default_factory=dict)
    digest: "hashlib._Hash" = field(default_factory=hashlib.sha256)
    _writer: pq.ParquetWriter | None = None
    _file_bytes: int = 0
    _group: list[dict[str, Any]] = field(default_factory=list)
    _group_bytes: int = 0

    def add(self, row: Row) -> None:
        """Write one row; files and row groups end where they are large enough."""
        self.rows += 1
        self.pixels = self.pixels + row.pixels
        further = {head: row.further[head] for head in self.heads}
        for head, found in further.items():
            self.further_pixels[head] = self.further_pixels.get(head, 0) + found.pixels
        labels = [row.label, *(found.label or b"" for found in further.values())]
        bands = {name: row.bands[name] for name in self.bands}
        for name, band in bands.items():
            self.band_moments[name] = self.band_moments.get(name, 0) + band.moments
            self.band_dtypes[name] = band.dtype
        files = [row.image, *labels, *(band.data for band in bands.values())]
        for content in (row.key.encode(), *files):
            self.digest.update(len(content).to_bytes(8, "big") + content)
        self._group_bytes += sum(map(len, files))
        self._group.append(
            {
                "key": row.key,
                "image": {"bytes": row.image, "path": row.image_path},
                "label": {"bytes": row.label, "path": f"{row.key}.png"},
                "height": row.height,
                "width": row.width,
                **{
                    f"label_{head}": found.label
                    and {"bytes": found.label, "path": f"{row.key}.png"}
                    for head, found in further.items()
                },
                **{f"band_{name}": band.data for name, band in bands.items()},
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
                schema(self.heads, self.bands),
                compression="none",
                use_dictionary=False,
                write_page_index=True,
            )
        self._writer.write_table(pa.Table.from_pylist(self._group, schema(self.heads, self.bands)))
        self._file_bytes += self._group_bytes
        self._group, self._group_bytes = [], 0
