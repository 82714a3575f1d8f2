"""Merging the runs of an output into one: the newest row of every key, and nothing else.

::

    1  manifest/run=N+1   every key that has a row, and the cards of the merged runs
    2  parts/run=N+1      the newest row of each, taken over as it is
    3  the new parts are checked: bytes, card, keys
    4  the parts and manifests of the older runs are removed
    5  _index.json

The newest run of a key wins, so that `tasks.parts.read` gives the same rows at every moment
between any two of these steps and within each of them. Whatever was cut off is gone on with by
the next merge; `predict` never takes it for a run of its own, but counts its rows.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from fcn.masks import MaskFormat
from tasks import manifest as manifests
from tasks import part_file, parts, stores
from tasks.manifest import Manifest, RunCard
from tasks.pages import to_entries
from tasks.part_check import check_rows
from tasks.plan import committed_pages, missing_shards
from tasks.stores import StoreError

_REMOVERS = 16
_VERIFY = "nothing was removed; `python -m flows verify` says what to do"


class MergeError(Exception):
    """Runs that cannot be merged as they are; nothing was removed."""


@dataclass(frozen=True, kw_only=True)
class Merge:
    """A merge under way.

    Attributes:
        manifest: Of the merged run.
        sources: The older runs that have a manifest, oldest first.
        missing: Shards of the merged run that have no part yet.
    """

    manifest: Manifest
    sources: tuple[Manifest, ...]
    missing: tuple[int, ...]


def plan_merge(output_url: str) -> Merge | None:
    """Begin a merge, or find the one that was cut off; ``None`` where there is one run alone.

    Raises:
        MergeError: the newest run is not finished.
        StoreError: no output of predict is there, or its store cannot be read or written.
    """
    runs = [manifests.read(output_url, run) for run in manifests.runs(output_url)]
    there = parts.listed(output_url)
    if not runs:
        raise StoreError(f"no manifest at {stores.redact(output_url)}: no output of predict")
    *older, newest = runs
    missing = missing_shards(newest, there)
    if missing and not (newest.card.merged and older):
        raise MergeError(
            f"run {newest.card.run:05d} is not finished: {len(missing):,} of "
            f"{newest.num_shards:,} parts are not there; finish it with predict, then compact"
        )
    if newest.card.merged:
        left_over = older or min(there) < newest.card.run or not parts.is_indexed(output_url)
        return Merge(manifest=newest, sources=tuple(older), missing=missing) if left_over else None
    if not older:
        return None
    card = _card(runs)
    entries = chain.from_iterable(map(to_entries, committed_pages(output_url, runs)))
    if not manifests.write(output_url, card, entries):
        raise MergeError(
            f"another process planned run {card.run:05d} at the same time; let it finish, then "
            "compact"
        )
    manifest = manifests.read(output_url, card.run)
    return Merge(manifest=manifest, sources=tuple(runs), missing=tuple(range(manifest.num_shards)))


def _card(runs: Sequence[Manifest]) -> RunCard:
    """The card of the run that these are merged into: the newest one's, and those of all."""
    newest = runs[-1].card
    merged = {
        card.run_digest: card.model_copy(update={"merged": ()})
        for run in runs
        for card in (*run.card.merged, run.card)
    }
    return newest.model_copy(
        update={
            "run": newest.run + 1,
            "images_per_shard": max(run.card.images_per_shard for run in runs),
            "merged": tuple(merged.values()),
        }
    )


def write_merged(merge: Merge, *, advance: Callable[[int], None] = lambda _: None) -> None:
    """Put the parts that are missing, in order.

    Args:
        merge: What `plan_merge` gave.
        advance: Told how many rows were taken over, each time some are.

    Raises:
        MergeError: an older run is damaged, or is not what it was when the merge began.
        StoreError: the output cannot be read or written.
    """
    if not merge.missing:
        return
    card, output_url = merge.manifest.card, merge.manifest.output_url
    source, places, missing = _Source(merge), _places(merge), set(merge.missing)
    for number in range(merge.manifest.num_shards):
        shard = list(islice(places, merge.manifest.num_images(number)))
        if number in missing:
            table = source.rows(shard)
            part = part_file.summarise_table(
                table, run=card.run, number=number, run_digest=card.run_digest
            )
            data = part_file.encode_table(table, part)
            stores.create_bytes(parts.part_url(output_url, card.run, number), data)
            advance(len(shard))
    next(places, None)  # raises for a key behind the last one


def remove_merged(merge: Merge) -> None:
    """Check the parts of the merged run, remove all older runs, and write the index.

    Raises:
        MergeError: a part of the merged run is missing or damaged; nothing was removed.
        StoreError: the output cannot be read or written.
    """
    manifest = merge.manifest
    run, output_url = manifest.card.run, manifest.output_url
    for number in range(manifest.num_shards):
        for finding in check_rows(manifest, number):
            raise MergeError(
                f"{finding.place} is not as it was written: {finding.text}; older runs are "
                "kept. Remove it, then compact again"
            )
    older = {other: n for other, n in parts.listed(output_url).items() if other < run}
    urls = [
        parts.part_url(output_url, other, n) for other, numbers in older.items() for n in numbers
    ]
    with ThreadPoolExecutor(_REMOVERS) as threads:
        list(threads.map(stores.remove, urls))
    for other in manifests.runs(output_url):
        if other < run:
            stores.remove(manifests.manifest_url(output_url, other))
    model = manifest.card.model
    parts.write_index(output_url, model.label_classes(), model.further_label_classes())


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where the newest row of a key is: in which part, and which row of it."""

    key: str
    run: int
    number: int
    row: int


def _places(merge: Merge) -> Iterator[_Place]:
    """The place of the newest row of every key of the merged run, in its order.

    Raises:
        MergeError: the older runs have other keys than when the merge began.
    """
    merged = merge.manifest.card.run
    sources = {source.card.run: source for source in merge.sources}
    positions = {run: enumerate(source.entries()) for run, source in sources.items()}
    for entry, newest in zip_longest(merge.manifest.entries(), _newest_rows(merge)):
        if newest is None or (entry is not None and entry.key < newest[0]):
            raise MergeError(
                f"{entry.key} has a row in no older run any more; run predict, which segments "
                "such images anew, then compact again"
            )
        key, run = newest
        if entry is None or entry.key != key:
            raise MergeError(
                f"{key} came into an older run after the merge had begun; remove "
                f"{manifests.manifest_name(merged)} and parts/run={merged:05d}, then compact again"
            )
        index = next(i for i, found in positions[run] if found.key == key)
        number, row = divmod(index, sources[run].card.images_per_shard)
        yield _Place(key=key, run=run, number=number, row=row)


def _newest_rows(merge: Merge) -> Iterator[tuple[str, int]]:
    """Key and run of the newest row of every key in the older runs, in the order of keys."""
    for page in committed_pages(merge.manifest.output_url, merge.sources):
        yield from zip(page["key"].to_pylist(), page["run"].to_pylist(), strict=True)


class _Source:
    """Rows of older runs by their place, asked for in the order of their keys.

    Memory holds a row group of every run. A part is checked before its first row is taken: a
    damaged one would get a digest that fits.
    """

    def __init__(self, merge: Merge) -> None:
        self._output_url = merge.manifest.output_url
        self._sources = {source.card.run: source for source in merge.sources}
        self._parts: dict[int, int] = {}  # by run: the part checked last
        self._groups: dict[int, tuple[tuple[int, int], pa.Table]] = {}  # by run: the last one
        there = parts.listed(self._output_url)
        first = [
            parts.part_url(self._output_url, run, there[run][0])
            for run in self._sources
            if run in there
        ]
        self._schema = part_file.schema(*_mask_formats(first), heads=merge.manifest.card.heads)

    def rows(self, places: Sequence[_Place]) -> pa.Table:
        """The rows at these places, in their order.

        Raises:
            MergeError: a part is damaged, or has not the rows of its manifest.
        """
        by_group: dict[tuple[int, int, int], list[tuple[int, int]]] = {}
        for index, place in enumerate(places):
            group, row = divmod(place.row, part_file.ROW_GROUP_ROWS)
            by_group.setdefault((place.run, place.number, group), []).append((index, row))
        pieces = [self._group(*at).take([row for _, row in rows]) for at, rows in by_group.items()]
        order = [index for rows in by_group.values() for index, _ in rows]
        table = pa.concat_tables(pieces).take(np.argsort(order))
        for place, key in zip(places, table["key"].to_pylist(), strict=True):
            if place.key != key:
                name = parts.part_name(place.run, place.number)
                raise MergeError(f"{name} has {key} in the place of {place.key}; {_VERIFY}")
        return table.combine_chunks()

    def _group(self, run: int, number: int, group: int) -> pa.Table:
        known = self._groups.get(run)
        if known and known[0] == (number, group):
            return known[1]
        if self._parts.get(run) != number:
            for finding in check_rows(self._sources[run], number):
                raise MergeError(f"{finding.place}: {finding.text}; {_VERIFY}")
            self._parts[run] = number
        with stores.open_input(parts.part_url(self._output_url, run, number)) as file:
            table = pq.ParquetFile(file).read_row_group(group)
        columns = [
            table[column.name]
            if column.name in table.column_names
            else pa.nulls(len(table), column.type)
            for column in self._schema
        ]
        table = pa.Table.from_arrays(columns, schema=self._schema)
        self._groups[run] = (number, group), table
        return table


def _mask_formats(urls: Sequence[str]) -> list[MaskFormat]:
    """The formats of the masks in these parts."""
    names: set[str] = set()
    for url in urls:
        with stores.open_input(url) as file:
            names.update(pq.read_schema(file).names)
    columns: dict[str, MaskFormat] = {"mask": "png", "mask_rle": "rle"}
    return [mask_format for column, mask_format in columns.items() if column in names]
