"""What a run has to do: all images, the rest of a run that was cut off, or nothing.

What is done is told by the parts alone. An unfinished run goes on if it was begun with the
same model and settings. Otherwise the collection is listed, and a new run is planned for the
images that are new, have changed, were done by another model or with other settings, or
could not be read the last time.
"""

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby

from tasks import manifest as manifests
from tasks import models, parts, stores
from tasks.manifest import Manifest, ModelCard, RunCard
from tasks.predict_config import PredictConfig, run_digest
from tasks.stores import Entry, StoreError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, and the shards of it that have no part yet; none when there is nothing to do."""

    manifest: Manifest
    missing: tuple[int, ...]

    @property
    def num_missing(self) -> int:
        """Images that are still to be segmented."""
        return sum(self.manifest.num_images(shard) for shard in self.missing)


@dataclass(frozen=True, kw_only=True)
class Done:
    """A committed row, as far as it decides whether its image is to be done again.

    ``digest`` is that of its run, or empty where the image could not be read.
    """

    entry: Entry
    run: int
    digest: str


def plan_run(collection_url: str, model_url: str, output_url: str, config: PredictConfig) -> Plan:
    """Plan a run, and write its manifest if it is a new one.

    Of several planners at the same time one writes the manifest, and the others adopt it.
    The model is loaded only where its file is not the one of an earlier run.

    Raises:
        StoreError: a URL that holds credentials, does not exist or cannot be written; a
            collection without images.
        CheckpointError: a model file that cannot be used.
        DeviceError: a device this machine does not have.
    """
    stores.require_no_credentials(collection_url, output_url)
    stores.require_writable(output_url)
    model = _model_card(model_url, output_url, config)
    digest = run_digest(model.digest, config)
    while True:
        runs = [manifests.read(output_url, run) for run in manifests.runs(output_url)]
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
            return Plan(manifest=same[-1], missing=missing)
        entries = _images(collection_url, output_url, config)
        todo = pending(entries, committed_rows(output_url, runs), digest) if runs else entries
        first = next(todo, None)
        if first is None:
            return Plan(manifest=(same or runs)[-1], missing=())
        card = RunCard(
            run=runs[-1].card.run + 1 if runs else 0,
            run_digest=digest,
            collection_url=collection_url,
            images_per_shard=config.images_per_shard,
            model=model,
        )
        manifests.write(output_url, card, chain([first], todo))
        # whoever wrote it: the next turn finds a manifest, ours or that of a faster planner


def missing_shards(manifest: Manifest, listed: dict[int, list[int]]) -> tuple[int, ...]:
    """Shards without a part.

    Args:
        manifest: The run's.
        listed: The parts there are, as `tasks.parts.listed` gives them.
    """
    there = set(listed.get(manifest.card.run, ()))
    return tuple(shard for shard in range(manifest.num_shards) if shard not in there)


def pending(entries: Iterable[Entry], done: Iterable[Done], digest: str) -> Iterator[Entry]:
    """The entries that ``done`` does not cover: both sorted by key, one row in memory.

    Args:
        entries: The collection as it is now.
        done: The newest committed row of every key.
        digest: Run digest of the run to be planned.
    """
    rows = iter(done)
    row = next(rows, None)
    for entry in entries:
        while row and row.entry.key < entry.key:
            row = next(rows, None)
        same = row and (row.entry.key, row.entry.size, row.entry.etag, row.digest)
        if same != (entry.key, entry.size, entry.etag, digest):
            yield entry


def committed_rows(output_url: str, runs: Sequence[Manifest]) -> Iterator[Done]:
    """The newest committed row of every key, sorted by key and streamed."""
    streams = [_committed_rows_of(output_url, run) for run in runs]
    merged = heapq.merge(*streams, key=lambda row: (row.entry.key, -row.run))
    for _, rows in groupby(merged, key=lambda row: row.entry.key):
        yield next(rows)


def _committed_rows_of(output_url: str, manifest: Manifest) -> Iterator[Done]:
    """The rows of one run, by its manifest and the names of its parts."""
    run, digest = manifest.card.run, manifest.card.run_digest
    committed = {part.number: part for part in parts.committed(output_url) if part.run == run}
    others = {number: parts.other_digests(output_url, part) for number, part in committed.items()}
    for index, entry in enumerate(manifest.entries()):
        shard = index // manifest.card.images_per_shard
        if shard in committed:
            yield Done(entry=entry, run=run, digest=others[shard].get(entry.key, digest))


def _images(collection_url: str, output_url: str, config: PredictConfig) -> Iterator[Entry]:
    """The images of the collection, at least one."""
    images = manifests.collect(
        collection_url, output_url, include=config.include, exclude=config.exclude
    )
    first = next(images, None)
    if first is None:
        raise StoreError(
            f"no images at {stores.redact(collection_url)}; of a prefix these names count: "
            f"{', '.join(config.include)}" + _excluded(config.exclude)
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
