"""One part: the rows of a shard as the bytes of a Parquet file."""

import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from fcn.masks import MaskFormat
from tasks.reading import READ_ERRORS
from tasks.stores import UNKNOWN_SIZE, Entry

Status = Literal["ok", "partial", "failed"]

ROW_GROUP_ROWS = 500
"""A random row costs two requests and one row group; 500 masks are about 2 MB."""

_FOOTER = b"fcn.part"
_COMPRESSED = (  # all but the masks, which are compressed already
    *("key", "url", "size", "etag", "height", "width", "status", "error_class", "error"),
    *("class_pixels.list.element", "confidence", "run_digest"),
)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What became of one image.

    Attributes:
        entry: the image, as the manifest has it.
        status: ``failed`` has a reason and no mask; ``partial`` is a truncated image.
        error_class: name of the exception that failed it, such as ``TruncatedImage``.
        mask: the encoded mask, ``None`` where it is in an object of its own.
        mask_path: file name of the mask, or URL of that object.
        class_pixels: pixels of each class, by id.
        confidence: mean over the pixels of the winning class's probability.
    """

    entry: Entry
    status: Status
    height: int | None = None
    width: int | None = None
    error_class: str | None = None
    error: str | None = None
    mask: bytes | None = None
    mask_path: str | None = None
    class_pixels: Sequence[int] | None = None
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class Part:
    """A part's card, in its footer and in the index.

    ``unread`` counts those of the failed rows whose bytes could not be had.
    """

    run: int
    number: int
    rows: int
    ok: int
    partial: int
    failed: int
    unread: int
    run_digest: str


def summarise(rows: Iterable[Row], *, run: int, number: int, run_digest: str) -> Part:
    """The card of a part with these rows."""
    count = Counter[str]()
    for row in rows:
        count.update(["rows", row.status] + ["unread"] * (row.error_class in READ_ERRORS))
    return Part(
        run=run,
        number=number,
        rows=count["rows"],
        ok=count["ok"],
        partial=count["partial"],
        failed=count["failed"],
        unread=count["unread"],
        run_digest=run_digest,
    )


def schema(mask_format: MaskFormat) -> pa.Schema:
    """Columns of a part; Hugging Face ``datasets`` shows PNG masks as images."""
    mask: pa.Field[Any] = (
        pa.field("mask", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
        if mask_format == "png"
        else pa.field("mask_rle", pa.binary())
    )
    columns: list[pa.Field[Any]] = [
        pa.field("key", pa.string()),
        pa.field("url", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("etag", pa.string()),
        pa.field("height", pa.int32()),
        pa.field("width", pa.int32()),
        pa.field("status", pa.string()),
        pa.field("error_class", pa.string()),
        pa.field("error", pa.string()),
        mask,
        pa.field("class_pixels", pa.list_(pa.int64())),
        pa.field("confidence", pa.float32()),
        pa.field("run_digest", pa.string()),
    ]
    features = {"info": {"features": {column.name: _feature(column) for column in columns}}}
    return pa.schema(columns, metadata={b"huggingface": json.dumps(features).encode()})


def encode(rows: Sequence[Row], part: Part, mask_format: MaskFormat) -> bytes:
    """The Parquet file of a shard's rows: the same bytes for the same rows."""
    columns = schema(mask_format)
    card = json.dumps(asdict(part)).encode()
    table = pa.Table.from_pylist(
        [_cells(row, part.run_digest) for row in rows],
        schema=columns.with_metadata({**(columns.metadata or {}), _FOOTER: card}),
    )
    sink = io.BytesIO()
    pq.write_table(
        table,
        sink,
        row_group_size=ROW_GROUP_ROWS,
        compression=dict.fromkeys(_COMPRESSED, "zstd"),
        use_dictionary=["status", "error_class", "error", "run_digest"],  # type: ignore[arg-type]
        write_statistics=["key", "status", "height", "width", "confidence"],
        write_page_index=True,
    )
    return sink.getvalue()


def read_card(file: Any) -> Part:
    """The card in the footer of an opened part.

    Raises:
        ValueError: no Parquet file, or none of ours.
    """
    metadata = pq.read_schema(file).metadata or {}
    if _FOOTER not in metadata:
        raise ValueError("a Parquet file without the card of a part")
    return Part(**json.loads(metadata[_FOOTER]))


def _cells(row: Row, run_digest: str) -> dict[str, Any]:
    """The row as a mapping; `pyarrow` takes those that the schema names."""
    masked = row.mask is not None or row.mask_path is not None
    return {
        "key": row.entry.key,
        "url": row.entry.url,
        "size": None if row.entry.size == UNKNOWN_SIZE else row.entry.size,
        "etag": row.entry.etag,
        "height": row.height,
        "width": row.width,
        "status": row.status,
        "error_class": row.error_class,
        "error": row.error,
        "mask": {"bytes": row.mask, "path": row.mask_path} if masked else None,
        "mask_rle": row.mask,
        "class_pixels": row.class_pixels,
        "confidence": row.confidence,
        "run_digest": run_digest,
    }


def _feature(column: "pa.Field[Any]") -> dict[str, Any]:
    """What Hugging Face calls the column's type."""
    if column.name == "mask":
        return {"_type": "Image"}
    if pa.types.is_list(column.type):
        return {"_type": "List", "feature": {"_type": "Value", "dtype": "int64"}}
    names = {"float": "float32"}
    return {"_type": "Value", "dtype": names.get(str(column.type), str(column.type))}
