"""One part: the rows of a shard as the bytes of a Parquet file.

The part's card, in the footer, holds the SHA-256 of the whole file with zeros in the digest's
own place. Footer and page indexes are covered, and nothing lies beside the part that could be
lost or be left behind.
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from fcn.masks import MaskFormat
from tasks.reading import READ_ERRORS
from tasks.stores import UNKNOWN_SIZE, Entry

Status = Literal["ok", "partial", "failed"]

ROW_GROUP_ROWS = 500
"""A random row costs two requests and one row group; 500 masks are about 2 MB."""

NO_DIGEST = "0" * 64
"""Stands in a card until its part is encoded."""

_CARD = b"fcn.part"
_DIGEST = b'"sha256":"%s"'  # as it stands in a card
_CHUNK = 1 << 20
_COMPRESSED = (  # all but the masks, which are compressed already
    *("key", "url", "size", "etag", "height", "width", "status", "error_class", "error"),
    *("class_pixels.list.element", "confidence", "run_digest"),
)


@dataclass(frozen=True, kw_only=True)
class HeadMask:
    """What one head says of an image: the fields of the same names of a `Row`."""

    mask: bytes | None
    mask_path: str | None
    class_pixels: Sequence[int]
    confidence: float


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
        further: the masks of further heads, by name; mask, class_pixels and confidence are the
            first head's.
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
    further: Mapping[str, HeadMask] = field(default_factory=dict)


class Part(BaseModel):
    """A part's card, in its footer and in the index.

    Attributes:
        run: the run that the part belongs to.
        number: of its shard.
        rows: images of the shard.
        ok: of these, those with a mask.
        partial: those with the mask of a truncated image.
        failed: those with a reason instead of a mask.
        unread: of the failed ones, those whose bytes could not be had.
        inherited: rows with another run digest than the part's: `compact` took them over
            from an older run.
        class_pixels: pixels of each class over all rows but the inherited ones.
        run_digest: of the run.
        sha256: of the file with `NO_DIGEST` in this place.
        further_class_pixels: the same of each further head, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: int
    number: int
    rows: int
    ok: int
    partial: int
    failed: int
    unread: int
    inherited: int
    class_pixels: tuple[int, ...]
    run_digest: str
    sha256: str = Field(NO_DIGEST, pattern=r"^[0-9a-f]{64}$")
    further_class_pixels: dict[str, tuple[int, ...]] = Field({}, exclude_if=lambda given: not given)


def summarise(rows: Iterable[Row], *, run: int, number: int, run_digest: str) -> Part:
    """The card of a part with these rows."""
    count = Counter[str]()
    pixels: list[Sequence[int]] = []
    further: dict[str, list[Sequence[int]]] = {}
    for row in rows:
        count.update(["rows", row.status] + ["unread"] * (row.error_class in READ_ERRORS))
        pixels += [row.class_pixels] if row.class_pixels is not None else []
        for name, head in row.further.items():
            further.setdefault(name, []).append(head.class_pixels)
    return Part(
        run=run,
        number=number,
        rows=count["rows"],
        ok=count["ok"],
        partial=count["partial"],
        failed=count["failed"],
        unread=count["unread"],
        inherited=0,
        class_pixels=_added(pixels),
        run_digest=run_digest,
        further_class_pixels={name: _added(counts) for name, counts in further.items()},
    )


def summarise_table(table: pa.Table, *, run: int, number: int, run_digest: str) -> Part:
    """`summarise` for rows as they are read from parts, some of which may be inherited."""
    pixels = [name for name in table.column_names if name.startswith("class_pixels")]
    rows = table.select(["status", "error_class", *pixels, "run_digest"]).to_pylist()
    count = Counter(row["status"] for row in rows)
    own = [row for row in rows if row["run_digest"] == run_digest]
    counts = {name: [row[name] for row in own if row[name] is not None] for name in pixels}
    return Part(
        run=run,
        number=number,
        rows=len(rows),
        ok=count["ok"],
        partial=count["partial"],
        failed=count["failed"],
        unread=sum(row["error_class"] in READ_ERRORS for row in rows),
        inherited=len(rows) - len(own),
        class_pixels=_added(counts.pop("class_pixels")),
        run_digest=run_digest,
        further_class_pixels={
            name.removeprefix("class_pixels_"): _added(found)
            for name, found in counts.items()
            if found
        },
    )


def _added(counts: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Pixels of each class over several images."""
    return tuple(map(sum, zip(*counts, strict=True)))


def column(name: str, head: str = "") -> str:
    """The column of a further head: ``mask`` and ``geo`` as ``mask_geo``; the first has no name."""
    return f"{name}_{head}" if head else name


def schema(*mask_formats: MaskFormat, heads: Sequence[str] = ()) -> pa.Schema:
    """Columns of a part; Hugging Face ``datasets`` shows PNG masks as images.

    Args:
        mask_formats: Of the rows' masks; both only where `compact` has merged runs of either.
        heads: Names of further heads, each of which has columns of its own (`column`).
    """

    def of_head(head: str) -> "list[pa.Field[Any]]":
        png = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        masks: dict[MaskFormat, pa.Field[Any]] = {
            "png": pa.field(column("mask", head), png),
            "rle": pa.field(column("mask_rle", head), pa.binary()),
        }
        return [
            *(mask for mask_format, mask in masks.items() if mask_format in mask_formats),
            pa.field(column("class_pixels", head), pa.list_(pa.int64())),
            pa.field(column("confidence", head), pa.float32()),
        ]

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
        *(field for head in ("", *heads) for field in of_head(head)),
        pa.field("run_digest", pa.string()),
    ]
    features = {"info": {"features": {field.name: _feature(field) for field in columns}}}
    return pa.schema(columns, metadata={b"huggingface": json.dumps(features).encode()})


def encode(
    rows: Sequence[Row], part: Part, mask_format: MaskFormat, heads: Sequence[str] = ()
) -> bytes:
    """The Parquet file of a shard's rows: the same bytes for the same rows."""
    cells = [_cells(row, part.run_digest) for row in rows]
    columns = schema(mask_format, heads=heads)
    return encode_table(pa.Table.from_pylist(cells, schema=columns), part)


def encode_table(table: pa.Table, part: Part) -> bytes:
    """The Parquet file of rows that have the columns of `schema`; its digest goes into its card."""
    found = table.column_names
    further = [f"{name}.list.element" for name in found if name.startswith("class_pixels_")]
    further += [name for name in found if name.startswith("confidence_")]
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression=dict.fromkeys((*_COMPRESSED, *further), "zstd"),
        use_dictionary=["status", "error_class", "error", "run_digest"],  # type: ignore[arg-type]
        write_statistics=["key", "status", "height", "width", "confidence"],
        write_page_index=True,
    ) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
        writer.add_key_value_metadata({_CARD.decode(): part.model_dump_json()})
    data = sink.getvalue()
    # the card stands behind everything that is made of the rows: theirs cannot be the last one
    start = _digest_place(data, part.sha256)
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:start] + digest + data[start + len(digest) :]


def read_card(file: Any) -> Part:
    """The card in the footer of an opened part.

    Raises:
        ValueError: no Parquet file, or none of ours.
    """
    try:
        metadata = pq.read_metadata(file).metadata or {}
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno):
            raise  # the store's; Parquet's own have no number
        raise ValueError(str(error)) from error
    if _CARD not in metadata:
        raise ValueError("a Parquet file without the card of a part")
    return Part.model_validate_json(metadata[_CARD])


def is_intact(file: Any, part: Part) -> bool:
    """Whether an opened part holds the bytes it was written with; memory holds a footer.

    Args:
        file: A part whose card could be read.
        part: That card.
    """
    file.seek(-8, io.SEEK_END)
    footer_bytes = int.from_bytes(file.read(4), "little")
    footer_start = file.seek(-8 - footer_bytes, io.SEEK_END)
    place = _digest_place(file.read(footer_bytes), part.sha256)
    if place < 0:
        return False
    digest = hashlib.sha256()
    for chunk in _chunks(file, footer_start + place):
        digest.update(chunk)
    digest.update(NO_DIGEST.encode())
    file.seek(len(NO_DIGEST), io.SEEK_CUR)
    for chunk in _chunks(file, None):
        digest.update(chunk)
    return digest.hexdigest() == part.sha256


def _digest_place(data: bytes, digest: str) -> int:
    """Where a card's digest stands in its file or footer; -1 where it does not."""
    found = data.rfind(_DIGEST % digest.encode())
    return found + _DIGEST.index(b"%") if found >= 0 else -1


def _chunks(file: Any, end: int | None) -> Iterator[bytes]:
    """The bytes before ``end``, or those from here on."""
    position = file.seek(0) if end is not None else file.tell()
    while end is None or position < end:
        chunk = file.read(_CHUNK if end is None else min(_CHUNK, end - position))
        if not chunk:
            return
        position += len(chunk)
        yield chunk


def _cells(row: Row, run_digest: str) -> dict[str, Any]:
    """The row as a mapping; `pyarrow` takes those that the schema names."""
    cells: dict[str, Any] = {
        "key": row.entry.key,
        "url": row.entry.url,
        "size": None if row.entry.size == UNKNOWN_SIZE else row.entry.size,
        "etag": row.entry.etag,
        "height": row.height,
        "width": row.width,
        "status": row.status,
        "error_class": row.error_class,
        "error": row.error,
        "run_digest": run_digest,
    }
    heads: dict[str, Row | HeadMask] = {"": row, **row.further}
    for head, found in heads.items():
        masked = found.mask is not None or found.mask_path is not None
        mask = {"bytes": found.mask, "path": found.mask_path} if masked else None
        cells |= {
            column("mask", head): mask,
            column("mask_rle", head): found.mask,
            column("class_pixels", head): found.class_pixels,
            column("confidence", head): found.confidence,
        }
    return cells


def _feature(column: "pa.Field[Any]") -> dict[str, Any]:
    """What Hugging Face calls the column's type."""
    if pa.types.is_struct(column.type):
        return {"_type": "Image"}
    if pa.types.is_list(column.type):
        return {"_type": "List", "feature": {"_type": "Value", "dtype": "int64"}}
    names = {"float": "float32"}
    return {"_type": "Value", "dtype": names.get(str(column.type), str(column.type))}
