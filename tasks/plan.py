"""What a run has to do: all images, the rest of a run that was cut off, or nothing.

What is done is told by the parts alone. An unfinished run goes on if it was begun with the
same model and settings. Otherwise the collection is listed, and a new run is planned for the
images that are new, have changed, were done by another model or with other settings, or
could not be read the last time. Collection and committed rows are compared as streams of
pages, sorted by key; memory holds a page of each.
"""

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fcn.backends import RunsOn, find_backend
from fcn.errors import BackendError
from tasks import deleted, engine, models, parts, stores
from tasks import manifest as manifests
from tasks.collection import collect
from tasks.manifest import Manifest, ModelCard, RunCard
from tasks.pages import align
from tasks.part_file import Part
from tasks.predict_config import PredictConfig, run_digest
from tasks.provenance import code_version
from tasks.stores import StoreError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, and the shards of it that have no part yet; none when there is nothing to do.

    ``num_deleted`` counts the keys that have rows, but were not in the collection when it was
    last listed; `tasks.deleted` tells which.
    """

    manifest: Manifest
    missing: tuple[int, ...]
    num_deleted: int

    @property
    def num_missing(self) -> int:
        """Images that are still to be segmented."""
        return sum(self.manifest.num_images(shard) for shard in self.missing)


def plan_run(collection_url: str, model_url: str, output_url: str, config: PredictConfig) -> Plan:
    """Plan a run, and write its manifest if it is a new one.

    Of several planners at the same time one writes the manifest, and the others adopt it.
    The model is loaded only where its file is not the one of an earlier run. Nothing is written
    before model and collection were found.

    Raises:
        StoreError: a URL that holds credentials, does not exist or cannot be written; a
            collection without images, or one that `tasks.collection.collect` refuses.
        CheckpointError: a model file that cannot be used.
        BackendError: a backend that is not installed, or not for this device or precision.
        DeviceError: a device this machine does not have.
        ValueError: the largest image allowed, with the model's bands and the masks of its heads,
            is above the memory budget.
    """
    stores.require_no_credentials(collection_url, output_url)
    model = _model_card(model_url, output_url, config)
    config.require_room(model.bands, 1 + len(model.further_classes))
    require_writable = cache(stores.require_writable)  # once, however many turns there are
    while True:
        runs = [manifests.read(output_url, run) for run in manifests.runs(output_url)]
        backend = choose_backend(runs, model, config)
        digest = run_digest(model.digest, config.model_copy(update={"backend": backend}))
        listed = parts.listed(output_url)
        same = [
            run
            for run in runs
            if run.card.run_digest == digest
            # a merge that was cut off is for compact to finish; its rows count all the same
            and not (run.card.merged and missing_shards(run, listed))
        ]
        missing = missing_shards(same[-1], listed) if same else ()
        if missing and same[-1] is runs[-1]:
            require_writable(output_url)
            return Plan(manifest=same[-1], missing=missing, num_deleted=deleted.count(output_url))
        images = _images(collection_url, output_url, config, [band.name for band in model.bands])
        require_writable(output_url)
        card = RunCard(
            run=runs[-1].card.run + 1 if runs else 0,
            run_digest=digest,
            collection_url=collection_url,
            images_per_shard=config.images_per_shard,
            model=model,
            network_cores=config.network_cores or engine.CORES.number,
            code=code_version(),
            backend=backend,
        )
        num_deleted = _plan_next(output_url, card, images, runs)
        if num_deleted is not None:
            return Plan(manifest=(same or runs)[-1], missing=(), num_deleted=num_deleted)
        # whoever wrote it: the next turn finds a manifest, ours or that of a faster planner


def choose_backend(runs: Sequence[Manifest], model: ModelCard, config: PredictConfig) -> RunsOn:
    """What is to run the network: as asked, or where that is open on a CPU, as in earlier runs.

    So an output that was begun with one backend is gone on with it, whatever is installed.

    Raises:
        BackendError: that backend is not installed here, or not for this device or precision.
        DeviceError: a device this machine does not have.
    """
    backend, device = find_backend(config.backend, config.device, config.precision)
    if config.backend == "auto" and device.type == "cpu":
        for run in reversed(runs):
            for card in (run.card, *run.card.merged):
                asked = config.model_copy(update={"backend": card.backend})
                if card.run_digest == run_digest(model.digest, asked):
                    _require_installed(card, asked)
                    return card.backend
    return backend


def _require_installed(card: RunCard, config: PredictConfig) -> None:
    try:
        find_backend(config.backend, config.device, config.precision)
    except BackendError as error:
        raise BackendError(
            f"run {card.run:05d} over this output was made with {card.backend}, and is continued "
            f"with it; {error} to segment every image anew"
        ) from error


def _plan_next(
    output_url: str, card: RunCard, images: Iterator[pa.Table], runs: Sequence[Manifest]
) -> int | None:
    """Write the manifest of what is to be done; where that is nothing, the deleted keys' number."""
    with tempfile.TemporaryDirectory(prefix="fcn-plan-") as name:
        folder = Path(name)
        with deleted.Draft(folder / "deleted.parquet") as gone:
            todo = images
            if runs:
                committed = committed_pages(output_url, runs)
                todo = changes(images, committed, card.run_digest, gone)
            num_rows = manifests.draft(folder / "manifest.parquet", card, todo)
            gone.publish(output_url)
        if not num_rows:
            return gone.num_rows
        manifests.publish(output_url, card, folder / "manifest.parquet")
        return None


def missing_shards(manifest: Manifest, listed: dict[int, list[int]]) -> tuple[int, ...]:
    """Shards without a part.

    Args:
        manifest: The run's.
        listed: The parts there are, as `tasks.parts.listed` gives them.
    """
    there = set(listed.get(manifest.card.run, ()))
    return tuple(shard for shard in range(manifest.num_shards) if shard not in there)


def changes(
    images: Iterable[pa.Table], committed: Iterable[pa.Table], digest: str, gone: deleted.Draft
) -> Iterator[pa.Table]:
    """The images that are new, have changed or were not done with ``digest``, by the page.

    Args:
        images: The collection as it is now.
        committed: The newest row of every key, as `committed_pages` gives them.
        digest: Run digest of the run to be planned.
        gone: Gets the keys of rows whose image is no longer there.
    """
    for now, done in align([images, committed]):
        if done is not None:
            keys = pa.array([], pa.string()) if now is None else now["key"].combine_chunks()
            there = pc.is_in(done["key"], value_set=keys)
            if not pc.all(there).as_py():
                gone.add(done.filter(pc.invert(there)))
        todo = now
        if now is not None and done is not None:
            todo = now.filter(pc.invert(_is_done(now, done, digest)))
        if todo is not None and todo.num_rows:
            yield todo


def _is_done(images: pa.Table, done: pa.Table, digest: str) -> Any:
    """For each image, whether its row is what another run with ``digest`` would give."""
    row = done.take(pc.index_in(images["key"], value_set=done["key"].combine_chunks()))
    same: Any = pc.equal(row["digest"], pa.scalar(digest))
    for column in ("size", "etag"):
        same = pc.and_(same, pc.equal(row[column], images[column]))
    then, now = (pc.coalesce(table["bands"], pa.scalar("")) for table in (row, images))
    same = pc.and_(same, pc.equal(then, now))
    return same.fill_null(False)  # of a key without a row nothing is equal


def committed_pages(output_url: str, runs: Sequence[Manifest]) -> Iterator[pa.Table]:
    """The newest committed row of every key, sorted by key and streamed: one listing.

    The columns are those of an entry, ``run``, and ``digest``: the row's run digest, or empty
    where the image could not be read.
    """
    by_run: dict[int, dict[int, Part]] = {}
    for part in parts.committed(output_url):
        by_run.setdefault(part.run, {})[part.number] = part
    newest_first = sorted(runs, key=lambda run: -run.card.run)
    return newest(
        [_committed_pages_of(output_url, run, by_run.get(run.card.run, {})) for run in newest_first]
    )


def newest(streams: Sequence[Iterable[pa.Table]]) -> Iterator[pa.Table]:
    """Of several streams, each sorted by key, the row of every key in the first that has it."""
    for tables in align(streams):
        kept: list[pa.Table] = []
        for table in tables:
            if table is not None:
                kept.append(reduce(_without, kept, table))
        yield pa.concat_tables(kept).sort_by("key")


def _without(rows: pa.Table, newer: pa.Table) -> pa.Table:
    """The rows whose key is not among the newer ones."""
    again = pc.is_in(rows["key"], value_set=newer["key"].combine_chunks())
    return rows.filter(pc.invert(again))


def _committed_pages_of(
    output_url: str, manifest: Manifest, committed: dict[int, Part]
) -> Iterator[pa.Table]:
    """The rows of one run, by its manifest and its parts."""
    is_committed = np.zeros(manifest.num_shards, bool)
    is_committed[[number for number in committed if number < manifest.num_shards]] = True
    first = 0
    for page in manifest.pages():
        shards = np.arange(first, first + page.num_rows) // manifest.card.images_per_shard
        first += page.num_rows
        others: dict[str, str] = {}
        for number in range(shards[0], shards[-1] + 1):
            if number in committed:
                others |= parts.other_digests(output_url, committed[number])
        digest = pa.array(np.full(page.num_rows, manifest.card.run_digest))
        if others:
            keys = pa.array(list(others), pa.string())
            found = pa.array(list(others.values()), pa.string())
            other = found.take(pc.index_in(page["key"].combine_chunks(), value_set=keys))
            digest = pc.coalesce(other, digest)
        run = pa.array(np.full(page.num_rows, manifest.card.run, np.int32))
        rows = page.append_column("digest", digest).append_column("run", run)
        yield rows.filter(pa.array(is_committed[shards]))


def _images(
    collection_url: str, output_url: str, config: PredictConfig, bands: Sequence[str]
) -> Iterator[pa.Table]:
    """The images of the collection, at least one."""
    images = collect(
        collection_url, output_url, include=config.include, exclude=config.exclude, bands=bands
    )
    first = next(images, None)
    if first is None:
        raise StoreError(
            f"no images at {stores.redact(collection_url)}; of a prefix these names count: "
            f"{', '.join(config.include)}, and tar or Parquet files" + _excluded(config.exclude)
        )
    return chain([first], images)


def _excluded(patterns: Sequence[str]) -> str:
    return f"; left out: {', '.join(patterns)}" if patterns else ""


def _model_card(model_url: str, output_url: str, config: PredictConfig) -> ModelCard:
    """The model's card: of an earlier run where the file is the same, else by loading it."""
    model = models.find_model(model_url)
    for run in reversed(manifests.runs(output_url)):
        card = manifests.read(output_url, run).card.model
        if models.is_same(model, card):
            return card
    return models.load_model(model, config).card
