"""The manifest: the images that a run segments, one row each, sorted by key.

::

    manifest/run=00000/manifest.parquet     key, url, size, etag; the run's card in the footer

It is written once, before any work, and fixes everything after it: shard ``n`` is rows
``n * images_per_shard`` and on, whoever does it and however often. Rows are written and read
in pages; memory holds one page.
"""

import fnmatch
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from fcn.classes import Classes
from tasks import stores
from tasks.stores import Entry, StoreError

PAGE_ROWS = 10_000
"""Rows of a page, about; a page holds whole shards."""

_COLUMNS: "list[pa.Field[Any]]" = [
    pa.field("key", pa.string()),
    pa.field("url", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("etag", pa.string()),
]

_CARD = b"fcn.run"
_RUN = re.compile(r"run=(\d{5,})/manifest\.parquet")


class ModelCard(BaseModel):
    """A model file: where it was, what tells that it is still the same, and its classes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    size: int
    etag: str
    digest: str
    classes: list[dict[str, Any]]
    ignore_index: int

    def label_classes(self) -> Classes:
        """The classes of the masks."""
        return Classes.from_json(self.classes, self.ignore_index)


class RunCard(BaseModel):
    """What a run is, beside its images.

    ``merged`` holds, for a run of `compact`, the cards of those it was made of, one of each run
    digest; it is empty for a run of `predict`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: int
    run_digest: str
    collection_url: str
    images_per_shard: int
    model: ModelCard
    merged: tuple["RunCard", ...] = ()


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """A written manifest: where it is, its card, its number of rows."""

    output_url: str
    card: RunCard
    num_rows: int

    @property
    def num_shards(self) -> int:
        """Units of work."""
        return -(-self.num_rows // self.card.images_per_shard)

    def num_images(self, shard: int) -> int:
        """Images of one shard; the last one may be short."""
        return min(self.card.images_per_shard, self.num_rows - shard * self.card.images_per_shard)

    def shard(self, number: int) -> list[Entry]:
        """The images of one shard, in order."""
        first = number * self.card.images_per_shard
        with stores.open_input(manifest_url(self.output_url, self.card.run)) as file:
            parquet = pq.ParquetFile(file)
            page, start = divmod(first, parquet.metadata.row_group(0).num_rows)
            table = parquet.read_row_group(page).slice(start, self.card.images_per_shard)
        return list(_entries(table))

    def entries(self) -> Iterator[Entry]:
        """All images, in order."""
        with stores.open_input(manifest_url(self.output_url, self.card.run)) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=PAGE_ROWS):
                yield from _entries(pa.Table.from_batches([batch]))


def manifest_name(run: int) -> str:
    """Where the manifest of a run is, below the output."""
    return f"manifest/run={run:05d}/manifest.parquet"


def manifest_url(output_url: str, run: int) -> str:
    """Where the manifest of a run is."""
    return stores.join(output_url, manifest_name(run))


def collect(
    collection_url: str, output_url: str, *, include: Sequence[str], exclude: Sequence[str] = ()
) -> Iterator[Entry]:
    """The images of a collection, sorted by key and streamed, without this output.

    Args:
        collection_url: A prefix, a prefix and a glob, or one object.
        output_url: Left out where it lies below the collection.
        include: Patterns of images below a prefix; a glob or one object is taken as it is.
        exclude: Patterns of what to leave out.

    Raises:
        StoreError: the collection does not exist, cannot be listed, is the output itself, or
            holds a name that is no text; also while iterating.
    """
    kind = stores.kind_of(collection_url)
    prefix = stores.split_glob(collection_url)[0] if kind == "glob" else collection_url
    own = _key_below(prefix, output_url)
    if own == "":
        raise StoreError(
            f"output_url and collection_url are both {stores.redact(prefix)}; "
            "give the output a place of its own, which may lie below the collection"
        )
    taken = _matcher(include if kind == "prefix" else ["*"])
    left_out = _matcher(exclude)
    for entry in stores.list_entries(collection_url):
        ours = own and entry.key.startswith(f"{own}/")
        if taken(entry.key) and not ours and not left_out(entry.key):
            _require_text(entry)
            yield entry


def write(output_url: str, card: RunCard, entries: Iterable[Entry]) -> bool:
    """Write a run's manifest, unless it has one: ``False`` when another planner was first.

    It is put together in a temporary folder, which lies where ``TMPDIR`` says.

    Raises:
        StoreError: the output, or the temporary folder, cannot be written.
    """
    page_rows = card.images_per_shard * max(1, PAGE_ROWS // card.images_per_shard)
    schema = pa.schema(_COLUMNS, {_CARD: card.model_dump_json().encode()})
    rows = iter(entries)
    with tempfile.TemporaryDirectory(prefix="fcn-manifest-") as folder:
        path = Path(folder) / "manifest.parquet"
        with (
            stores.explained(str(path), "write"),  # a full disk, most of all
            pq.ParquetWriter(path, schema, compression="zstd") as writer,
        ):
            while page := list(islice(rows, page_rows)):
                writer.write_table(_table(page, schema), row_group_size=page_rows)
        return stores.create_file(manifest_url(output_url, card.run), path)


def runs(output_url: str) -> list[int]:
    """Numbers of the runs that were planned over an output, oldest first."""
    folder = stores.join(output_url, "manifest")
    if not stores.exists(folder):
        return []
    matches = (_RUN.fullmatch(entry.key) for entry in stores.list_entries(folder))
    return sorted(int(match[1]) for match in matches if match)


def read(output_url: str, run: int) -> Manifest:
    """The manifest of a run.

    Raises:
        StoreError: there is none, or it is not one of ours.
    """
    url = manifest_url(output_url, run)
    with stores.open_input(url) as file:
        try:
            parquet = pq.ParquetFile(file)
            card = RunCard.model_validate_json(parquet.schema_arrow.metadata[_CARD])
        except (pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{stores.redact(url)} is no manifest of ours: {error}") from error
        return Manifest(output_url=output_url, card=card, num_rows=parquet.metadata.num_rows)


def _table(entries: Sequence[Entry], schema: pa.Schema) -> pa.Table:
    columns = {name: [getattr(entry, name) for entry in entries] for name in schema.names}
    return pa.table(columns, schema=schema)


def _entries(table: pa.Table) -> Iterator[Entry]:
    for key, url, size, etag in zip(*(column.to_pylist() for column in table.columns), strict=True):
        yield Entry(key=key, url=url, size=size, etag=etag)


def _matcher(patterns: Iterable[str]) -> Callable[[str], bool]:
    """A function that says whether a key matches one of the patterns."""
    plain: list[str] = []
    whole: list[str] = []
    for pattern in patterns:
        (whole if "/" in pattern else plain).append(fnmatch.translate(pattern))
    names = re.compile("|".join(plain) or r"(?!)", re.IGNORECASE)
    keys = re.compile("|".join(whole) or r"(?!)", re.IGNORECASE)
    return lambda key: bool(names.match(key.rpartition("/")[2]) or keys.match(key))


def _key_below(prefix: str, url: str) -> str | None:
    """The key of ``url`` below ``prefix``, "" for the prefix itself; ``None`` elsewhere."""
    above, place = (
        (str(path) if path else text).rstrip("/")
        for text, path in ((text, stores.local_path(text)) for text in (prefix, url))
    )
    if place == above:
        return ""
    return place.removeprefix(f"{above}/") if place.startswith(f"{above}/") else None


def _require_text(entry: Entry) -> None:
    try:
        entry.url.encode()
    except UnicodeEncodeError:
        name = entry.key.encode("utf-8", "backslashreplace").decode()
        raise StoreError(
            f"the file name {name} is no valid UTF-8 and cannot be a key; rename it or leave "
            "it out with an exclude pattern"
        ) from None
