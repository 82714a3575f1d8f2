"""The manifest: the images that a run segments, one row each, sorted by key.

::

    manifest/run=00000/manifest.parquet     a row is a `tasks.listing.Entry`: key, url, size,
                                            etag, container, offset, length, and of a model
                                            that sees bands, bands; the run's card in the footer

It is written once, before any work, and fixes everything after it: shard ``n`` is rows
``n * images_per_shard`` and on, whoever does it and however often. Rows are written and read
in pages; memory holds one page, or of a run at work the last few.
"""

import re
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field

from fcn.backends import RunsOn
from fcn.bands import Band
from fcn.classes import Classes
from tasks import stores
from tasks.pages import PAGE_ROWS, SCHEMA, complete, paged, rechunk, to_entries
from tasks.stores import Entry, StoreError

_KEPT_PAGES = 2
"""Pages that a manifest keeps: shards at work together are mostly neighbours."""

_CARD = b"fcn.run"
_RUN = re.compile(r"run=(\d{5,})/manifest\.parquet")


class ModelCard(BaseModel):
    """A model file: where it was, what tells that it is still the same, and its classes.

    ``further_classes`` are those of further heads, by name; a card of one head has no such entry.
    Nor has one of RGB images ``bands``, which are those that the model sees besides.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str
    size: int
    etag: str
    digest: str
    classes: list[dict[str, Any]]
    ignore_index: int
    further_classes: dict[str, list[dict[str, Any]]] = Field({}, exclude_if=lambda given: not given)
    bands: tuple[Band, ...] = Field((), exclude_if=lambda given: not given)

    def label_classes(self) -> Classes:
        """The classes of the masks; of several heads, the first one's."""
        return Classes.from_json(self.classes, self.ignore_index)

    def further_label_classes(self) -> dict[str, Classes]:
        """The classes of the masks of further heads, by name."""
        return {
            name: Classes.from_json(rows, self.ignore_index)
            for name, rows in self.further_classes.items()
        }


class RunCard(BaseModel):
    """What a run is, beside its images.

    ``backend`` is what ran the network (`fcn.backends`), for the run's shards and for later runs
    that leave the choice open. ``code`` tells the code that planned it, see
    `tasks.provenance.code_version`; ``None`` in older ones. ``merged`` holds, for a run of
    `compact`, the cards of those it was made of, one of each run digest; it is empty for a run
    of `predict`. ``network_cores`` are used by the network on a CPU in every process that works
    on the run; ``None`` in older ones: as many as torch takes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: int
    run_digest: str
    collection_url: str
    images_per_shard: int
    model: ModelCard
    network_cores: int | None = None
    code: dict[str, Any] | None = None
    backend: RunsOn = "torch"
    merged: tuple["RunCard", ...] = ()

    @property
    def sees_bands(self) -> bool:
        """Whether the run's images have bands, or those of a merged run."""
        return any(card.model.bands for card in (*self.merged, self))

    @property
    def heads(self) -> tuple[str, ...]:
        """The further heads that have columns in the run's parts: those of merged runs too."""
        models = [card.model for card in (*self.merged, self)]
        return tuple(dict.fromkeys(name for model in models for name in model.further_classes))


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
        """The images of one shard, in order. Can be called from several threads.

        The file's footer and its last pages are kept with this object: of neighbouring shards
        one reads. A copy in another process reads for itself.

        Raises:
            StoreError: the manifest cannot be read.
        """
        images = self.card.images_per_shard
        return list(to_entries(complete(self._pages.rows(number * images, images))))

    @cached_property
    def _pages(self) -> "_Pages":
        return _Pages(manifest_url(self.output_url, self.card.run))

    def pages(self) -> Iterator[pa.Table]:
        """All images as pages of entries, in order."""
        with stores.open_input(manifest_url(self.output_url, self.card.run)) as file:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=PAGE_ROWS):
                yield complete(pa.Table.from_batches([batch]))

    def entries(self) -> Iterator[Entry]:
        """All images, in order."""
        for page in self.pages():
            yield from to_entries(page)

    def find(self, keys: Collection[str]) -> dict[str, Entry]:
        """Those of the images that have one of these keys, by key."""
        wanted = pa.array(sorted(keys), pa.string())
        found = (page.filter(pc.is_in(page["key"], value_set=wanted)) for page in self.pages())
        return {entry.key: entry for page in found for entry in to_entries(page)}


class _Pages:
    """Rows of a manifest, of which the footer and a few pages stay in memory.

    It is pickled without them, and it holds no open file. One thread reads at a time, so that a
    page is read once.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._footer: pq.FileMetaData | None = None
        self._kept: dict[int, pa.Table] = {}

    def __reduce__(self) -> tuple[type["_Pages"], tuple[str]]:
        return _Pages, (self.url,)

    def rows(self, first: int, num_rows: int) -> pa.Table:
        """So many rows, all of one page: those of a shard are."""
        with self._lock:
            if self._footer is None:
                with stores.open_input(self.url) as file:
                    self._footer = pq.ParquetFile(file).metadata
            number, start = divmod(first, self._footer.row_group(0).num_rows)
            page = self._kept.pop(number, None)
            if page is None:
                with stores.open_input(self.url) as file:
                    page = pq.ParquetFile(file, metadata=self._footer).read_row_group(number)
            if num_rows < page.num_rows:  # else no other shard has rows of it
                self._kept[number] = page
                if len(self._kept) > _KEPT_PAGES:
                    del self._kept[next(iter(self._kept))]
        return page.slice(start, num_rows)


def manifest_name(run: int) -> str:
    """Where the manifest of a run is, below the output."""
    return f"manifest/run={run:05d}/manifest.parquet"


def manifest_url(output_url: str, run: int) -> str:
    """Where the manifest of a run is."""
    return stores.join(output_url, manifest_name(run))


def draft(path: Path, card: RunCard, pages: Iterable[pa.Table]) -> int:
    """Write a run's manifest to a local file, for `publish`; returns the number of its rows.

    Raises:
        StoreError: the file cannot be written, or ``pages`` cannot be had.
    """
    page_rows = card.images_per_shard * max(1, PAGE_ROWS // card.images_per_shard)
    columns = [column for column in SCHEMA if column.name != "bands" or card.sees_bands]
    schema = pa.schema(columns, {_CARD: card.model_dump_json().encode()})
    num_rows = 0
    with (
        stores.explained(str(path), "write"),  # a full disk, most of all
        pq.ParquetWriter(path, schema, compression="zstd") as writer,
    ):
        for page in rechunk(pages, page_rows):
            writer.write_table(page.select(schema.names).cast(schema), row_group_size=page_rows)
            num_rows += page.num_rows
    return num_rows


def publish(output_url: str, card: RunCard, path: Path) -> bool:
    """Put the manifest in ``path``, unless the run has one: ``False`` when it has.

    Raises:
        StoreError: the output cannot be written.
    """
    return stores.create_file(manifest_url(output_url, card.run), path)


def write(output_url: str, card: RunCard, entries: Iterable[Entry]) -> bool:
    """Write a run's manifest, unless it has one: ``False`` when another planner was first.

    It is put together in a temporary folder, which lies where ``TMPDIR`` says.

    Raises:
        StoreError: the output, or the temporary folder, cannot be written.
    """
    with tempfile.TemporaryDirectory(prefix="fcn-manifest-") as folder:
        path = Path(folder) / "manifest.parquet"
        draft(path, card, paged(entries))
        return publish(output_url, card, path)


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
