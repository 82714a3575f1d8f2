"""Lineage: from one row of a prediction to the model, data, settings and code it came of.

::

    row -> run_digest -> card of its run -> SHA-256 of the model -> card of the model file
        -> digest of the dataset, settings, code, scores, SHA-256 of the first weights -> ...

Every link is a digest: what a URL holds by now is looked at and compared, never trusted. A
link that cannot be followed says why, and the lines after it are left out.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

import fcn
from fcn.errors import CheckpointError
from tasks import manifest as manifests
from tasks import parts, serving, stores
from tasks.artifacts import publish_table
from tasks.dataset import DatasetError, read_info
from tasks.manifest import Manifest, RunCard
from tasks.stores import StoreError

MAX_GENERATIONS = 20
"""Models that were each trained from the one before; a staged training has three."""

_REPLACED = (
    "it was replaced, as by a training over the same run_url. A promoted model stays under its "
    "digest"
)
_COLUMNS = ["key", "url", "etag", "height", "width", "status", "error_class", "error", "run_digest"]

Line = tuple[str, str]
"""The name of a link, and what is there."""


class LineageError(Exception):
    """A key that has no row."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A row, and where it is.

    Attributes:
        manifest: of the run whose part holds it.
        shard: number of that part.
        row: its columns but the mask.
    """

    manifest: Manifest
    shard: int
    row: Mapping[str, Any]


@task(task_run_name="trace {key}", cache_policy=NO_CACHE)
def trace(key: str, output_url: str) -> dict[str, str]:
    """The lineage of the newest row of a key, a line for each link.

    Raises:
        LineageError: there is no such row.
        StoreError: no output of predict is there, or it cannot be read.
    """
    lines = dict(lineage_lines(key, output_url))
    for name, text in lines.items():
        get_run_logger().info("%s: %s", name, text)
    rows = [{"link": name, "what is there": text} for name, text in lines.items()]
    publish_table("lineage", rows, f"Where the row of {key} comes from")
    return lines


def lineage_lines(key: str, output_url: str) -> Iterator[Line]:
    """The links from the newest row of a key back, in order.

    Raises:
        LineageError: there is no such row.
        StoreError: no output of predict is there, or it cannot be read.
    """
    found = find_row(key, output_url)
    row, card = found.row, found.manifest.card
    yield "row", _row_text(row)
    yield "image", _joined(stores.redact(row["url"]), f"etag {row['etag']}" if row["etag"] else "")
    part_url = parts.part_url(output_url, card.run, found.shard)
    yield "part", f"{stores.redact(part_url)}, written {_when(part_url)}"
    yield (
        "run",
        f"{card.run:05d} over {stores.redact(card.collection_url)}, planned "
        + _when(manifests.manifest_url(output_url, card.run)),
    )
    yield "run digest", row["run_digest"]
    of_row = card_of(row["run_digest"], card)
    if of_row is None:
        yield (
            "model",
            f"unknown: no card in {manifests.manifest_name(card.run)} has this run digest",
        )
        return
    if of_row.run_digest != card.run_digest:
        yield "inherited", f"compact took the row over from run {of_row.run:05d}"
    yield "predicted by", code_text(of_row.code)
    yield from _model_lines("model", of_row.model.url, of_row.model.digest)


def find_row(key: str, output_url: str) -> Found:
    """The newest committed row of a key.

    Raises:
        LineageError: there is none.
        StoreError: no output of predict is there, or it cannot be read.
    """
    runs = manifests.runs(output_url)
    if not runs:
        raise StoreError(f"no manifest at {stores.redact(output_url)}: no output of predict")
    planned = None
    for run in reversed(runs):
        manifest = manifests.read(output_url, run)
        position = _position(manifest, key)
        if position is None:
            continue
        shard = position // manifest.card.images_per_shard
        part_url = parts.part_url(output_url, run, shard)
        if not stores.exists(part_url):
            planned = planned or f"run {run:05d} is to make it, but part-{shard:05d} is not there"
            continue
        with stores.open_input(part_url) as file:
            table = pq.read_table(file, columns=_COLUMNS)
        [row] = table.filter(pc.equal(table["key"], pa.scalar(key))).to_pylist()
        return Found(manifest=manifest, shard=shard, row=row)
    raise LineageError(
        f"{key} has no row at {stores.redact(output_url)}: "
        + (f"{planned}; finish it with predict" if planned else "no manifest names it")
    )


def _position(manifest: Manifest, key: str) -> int | None:
    """The row of a key in a manifest."""
    first = 0
    for page in manifest.pages():
        if (index := pc.index(page["key"], key).as_py()) >= 0:
            return first + int(index)
        first += page.num_rows
    return None


def card_of(run_digest: str, card: RunCard) -> RunCard | None:
    """The card of the run that made a row: this one, or one that `compact` merged into it."""
    return next((one for one in (card, *card.merged) if one.run_digest == run_digest), None)


def _model_lines(name: str, url: str, digest: str, generation: int = 0) -> Iterator[Line]:
    """A model, and all that its card tells; then the model that its first weights came from."""
    yield name, f"{url}, SHA-256 {digest}"
    if promotion := _promotion(url, digest):
        yield f"{name} promoted", promotion
    try:
        data = stores.read_bytes(url)
        found = hashlib.sha256(data).hexdigest()
        if found != digest:
            yield f"{name} file", f"is another one by now, SHA-256 {found}; {_REPLACED}"
            return
        model = fcn.load(data)
    except (StoreError, CheckpointError) as error:
        yield f"{name} file", f"unknown: {error}"
        return
    del data
    facts = model.facts
    yield f"{name} file", "has this SHA-256"
    yield (
        f"{name} network",
        f"FCN-{model.net.stride}s on {model.net.backbone}, {len(model.classes)} classes",
    )
    yield from _dataset_lines(name, _table(facts.get("dataset")))
    yield f"{name} settings", _pairs(facts.get("config"))
    yield f"{name} trained by", _joined(code_text(facts.get("code")), _pairs(facts.get("versions")))
    yield f"{name} scores", _pairs(facts.get("scores"), leave=("iu",))
    init = _table(facts.get("init"))
    if init.get("sha256") is None or init.get("url") is None:
        yield f"{name} first weights", str(init.get("url") or "unknown: the card does not tell")
    elif generation < MAX_GENERATIONS:
        yield from _model_lines(
            f"{name} first weights", str(init["url"]), str(init["sha256"]), generation + 1
        )


def _dataset_lines(name: str, dataset: Mapping[str, Any]) -> Iterator[Line]:
    url, digest = dataset.get("url"), dataset.get("digest")
    if digest is None:
        yield f"{name} dataset", "unknown: the card does not tell"
        return
    yield f"{name} dataset", _joined(url, f"digest {digest}", f"of {dataset.get('source')}")
    if url is None:
        yield f"{name} dataset now", "unknown: the card does not tell where it was"
        return
    try:
        now = read_info(str(url)).digest
    except (DatasetError, StoreError) as error:
        yield f"{name} dataset now", f"unknown: {error}"
        return
    yield (
        f"{name} dataset now",
        "has this digest" if now == digest else f"is another one by now, digest {now}",
    )


def _table(fact: object) -> Mapping[str, Any]:
    """A fact of a model card that should be a table; cards may come from strangers."""
    return fact if isinstance(fact, Mapping) else {}


def _promotion(url: str, digest: str) -> str:
    """When and from where a model under its digest was promoted; empty for other models."""
    try:
        promotion = serving.find(url, digest)
    except (StoreError, serving.PromoteError) as error:
        return f"unknown: {error}"
    if promotion is None:
        return ""
    gain = "" if promotion.gain is None else f"gain {100 * promotion.gain:+.2f} points"
    return _joined(
        f"as number {promotion.number} at {promotion.promoted_at:%Y-%m-%d %H:%M:%S} UTC from "
        f"{promotion.source_url}, rule {promotion.rule}",
        f"{gain} on {promotion.split}" if gain else "",
    )


def code_text(code: Mapping[str, Any] | None) -> str:
    """A version as `tasks.provenance.code_version` tells it, in words."""
    if not code:
        return "unknown: written before code was told"
    commit = code.get("commit")
    return _joined(
        f"fcn-flows {code.get('version') or 'of no installed version'}",
        f"commit {commit}" if commit else "no git checkout",
        "with changes that are in no commit" if code.get("dirty") else "",
    )


def _row_text(row: Mapping[str, Any]) -> str:
    if row["status"] == "failed":
        return f"{row['key']}: failed, {row['error_class']}: {row['error']}"
    return f"{row['key']}: {row['status']}, {row['height']} x {row['width']} pixels"


def _when(url: str) -> str:
    """When an object was written, by its store's clock."""
    try:
        return f"{stores.modified(url):%Y-%m-%d %H:%M:%S} UTC"
    except StoreError as error:
        return f"at an unknown time ({error})"


def _pairs(values: Mapping[str, Any] | None, leave: tuple[str, ...] = ()) -> str:
    if not values:
        return "unknown: the card does not tell"
    return ", ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in values.items()
        if name not in leave and value is not None
    )


def _joined(*texts: str | None) -> str:
    return ", ".join(filter(None, texts))
