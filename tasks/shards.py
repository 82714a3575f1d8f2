"""A shard: its images segmented, its part put; and what all shards of a run came to."""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from fcn.errors import CheckpointError
from tasks import manifest as manifests
from tasks import models, part_file, parts, stores
from tasks.engine import cores_of, segment
from tasks.manifest import Manifest
from tasks.networks import Segmenter
from tasks.part_file import Part
from tasks.plan import Plan
from tasks.predict_config import PredictConfig
from tasks.rows import SaveMask
from tasks.seconds import Seconds, Stage
from tasks.slow_images import SlowImage, slow_images, slowest
from tasks.weak_spots import (
    ClassShare,
    WeakSpot,
    class_shares,
    weak_spots,
    weak_spots_of,
    weakest,
)
from tasks.wording import number_of

_READERS = 16


@dataclass(frozen=True, kw_only=True)
class ShardReport:
    """A finished shard: its part's card, busy seconds by stage, and seconds by the clock.

    ``was_first`` is false where another writer had put the part before; that one counts.
    ``weak_spots`` are its least confident images, ``slow_images`` those that took longest.
    """

    part: Part
    stages: dict[Stage, float]
    seconds: float
    was_first: bool
    weak_spots: Sequence[WeakSpot]
    slow_images: Sequence[SlowImage]

    def line(self) -> str:
        """The report as a line of a log."""
        part = self.part
        stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.stages.items())
        return (
            f"{number_of(part.rows, 'image')} in {self.seconds:.1f} s "
            f"({part.rows / max(self.seconds, 1e-9):.1f}/s): {part.ok:,} ok, {part.partial:,} "
            f"partial, {part.failed:,} failed; busy seconds: {stages}"
            + ("" if self.was_first else "; another writer was first")
        )


@dataclass(frozen=True, kw_only=True)
class PartitionReport:
    """What a child run tells of the shards that it finished; figures as in `PredictSummary`."""

    images: int
    stages: dict[Stage, float]
    slow_images: Sequence[SlowImage]


@dataclass(frozen=True, kw_only=True)
class PredictSummary:
    """What a prediction came to.

    Attributes:
        output_url: where the masks are.
        run: number of the run.
        rows: images of the run, by this attempt and earlier ones.
        ok: of these, those with a mask.
        partial: those with the mask of a truncated image.
        failed: those with a reason instead of a mask.
        deleted: keys with a row of some run that were no longer in the collection when it was
            last listed; see `tasks.deleted`.
        segmented: images that this attempt went through.
        seconds: the time that took, by the clock.
        stages: busy seconds of each stage, over all threads; stages overlap.
        class_shares: how much each class covers, now and in the run before.
        weak_spots: the least confident images of the run.
        slow_images: those of this attempt that took longest.
        further_class_shares: how much each class of a further head covers, by its name.
    """

    output_url: str
    run: int
    rows: int
    ok: int
    partial: int
    failed: int
    deleted: int
    segmented: int
    seconds: float
    stages: dict[Stage, float]
    class_shares: tuple[ClassShare, ...]
    weak_spots: tuple[WeakSpot, ...]
    slow_images: tuple[SlowImage, ...]
    further_class_shares: dict[str, tuple[ClassShare, ...]] = field(default_factory=dict)


def write_part(
    manifest: Manifest,
    number: int,
    model_url: str,
    config: PredictConfig,
    *,
    advance: Callable[[int], None] = lambda _: None,
    last_attempt: bool = False,
) -> ShardReport:
    """Segment a shard and put its part, unless another writer has put it meanwhile.

    Args:
        manifest: The run's.
        number: Which shard.
        model_url: The model that the run was planned with.
        config: The settings that the run was planned with.
        advance: Told how many images were done, each time some are.
        last_attempt: Whether the shard will not be tried again: an image that its store will
            not give, though it answers, is then a failed row.

    Raises:
        CheckpointError: the model cannot be used, or is another one by now.
        StoreError: the output cannot be written.
        StoreUnavailable: a store is out; to be tried again.
    """
    config = config.model_copy(update={"backend": manifest.card.backend})
    loaded = models.load_model(models.find_model(model_url), config)
    if loaded.card.digest != manifest.card.model.digest:
        raise CheckpointError(
            f"model {stores.redact(model_url)} was replaced while the run was going on; "
            "run again to segment everything with the new one"
        )
    return write_part_with(
        loaded.predictor, manifest, number, config, advance=advance, last_attempt=last_attempt
    )


def write_part_with(
    predictor: Segmenter,
    manifest: Manifest,
    number: int,
    config: PredictConfig,
    *,
    advance: Callable[[int], None] = lambda _: None,
    last_attempt: bool = False,
) -> ShardReport:
    """`write_part` with a given predictor."""
    start, seconds = time.monotonic(), Seconds()
    with seconds.measure("read"):
        entries = manifest.shard(number)
    save = mask_saver(manifest.output_url) if "png" in config.sinks else None
    rows = segment(
        entries,
        predictor,
        config,
        seconds=seconds,
        save_mask=save,
        advance=advance,
        last_attempt=last_attempt,
        further_classes=manifest.card.model.further_label_classes(),
        cores=cores_of(manifest.card.network_cores),
        bands=manifest.card.model.bands,
    )
    run, digest = manifest.card.run, manifest.card.run_digest
    part = part_file.summarise(rows, run=run, number=number, run_digest=digest)
    with seconds.measure("encode"):
        data = part_file.encode(rows, part, config.mask_format, manifest.card.heads)
    with seconds.measure("write"):
        was_first = stores.create_bytes(parts.part_url(manifest.output_url, run, number), data)
    return ShardReport(
        part=part,
        stages=seconds.by_stage,
        seconds=time.monotonic() - start,
        was_first=was_first,
        weak_spots=weak_spots(rows),
        slow_images=slow_images(rows, seconds.by_image),
    )


def summarise(
    plan: Plan,
    reports: Sequence[ShardReport],
    seconds: float,
    elsewhere: Sequence[PartitionReport] = (),
) -> PredictSummary:
    """The summary of a run whose parts are all there.

    Args:
        plan: What there was to do.
        reports: The shards that were done now.
        seconds: How long they took together, by the clock.
        elsewhere: What child runs did.
    """
    manifest = plan.manifest
    cards = parts.committed(manifest.output_url)
    of_run = [part for part in cards if part.run == manifest.card.run]
    done_now = {report.part.number for report in reports}
    spots = [spot for report in reports for spot in report.weak_spots]
    # Where there was nothing to do no part is opened: it would take as long as the run is large.
    looked_at = of_run if plan.missing else []
    done_before = [p for p in looked_at if p.number not in done_now and p.rows > p.failed]
    with ThreadPoolExecutor(_READERS) as threads:  # a request or two for each part
        for found in threads.map(partial(weak_spots_of, manifest.output_url), done_before):
            spots += found
    done: list[ShardReport | PartitionReport] = [*reports, *elsewhere]
    stages = Counter[Stage]()
    for report in done:
        stages.update(report.stages)
    before, model = _run_before(manifest, cards), manifest.card.model
    return PredictSummary(
        output_url=stores.redact(manifest.output_url),
        run=manifest.card.run,
        rows=sum(part.rows for part in of_run),
        ok=sum(part.ok for part in of_run),
        partial=sum(part.partial for part in of_run),
        failed=sum(part.failed for part in of_run),
        deleted=plan.num_deleted,
        segmented=sum(report.part.rows for report in reports)
        + sum(report.images for report in elsewhere),
        seconds=seconds if plan.missing else 0.0,
        stages=dict(stages),
        class_shares=tuple(class_shares(of_run, before, model.label_classes())),
        weak_spots=tuple(weakest(spots)),
        further_class_shares={
            name: tuple(class_shares(of_run, before, classes, name))
            for name, classes in model.further_label_classes().items()
        },
        slow_images=tuple(slowest(image for report in done for image in report.slow_images)),
    )


def _run_before(manifest: Manifest, cards: Sequence[Part]) -> list[Part]:
    """The cards of the newest older run that has the same classes."""
    for run in sorted({part.run for part in cards if part.run < manifest.card.run}, reverse=True):
        of_run = [part for part in cards if part.run == run]
        model, own = manifests.read(manifest.output_url, run).card.model, manifest.card.model
        same = (model.classes, model.further_classes) == (own.classes, own.further_classes)
        if same and any(p.class_pixels for p in of_run):
            return of_run
    return []


def mask_saver(output_url: str) -> SaveMask:
    """A function that puts a PNG mask where `mask_url` says and returns its URL."""

    def save(key: str, png: bytes, head: str = "") -> str:
        url = mask_url(output_url, key, head)
        stores.write_bytes(url, png)
        return url

    return save


def mask_url(output_url: str, key: str, head: str = "") -> str:
    """Where the png sink puts the mask of a key: ``masks/KEY.png``, ``masks-HEAD/KEY.png``."""
    folder = f"masks-{head}" if head else "masks"
    return f"{stores.join(output_url, folder)}/{_below(key)}.png"


def _below(key: str) -> str:
    """The key, such that it cannot lead out of a local folder: keys of S3 may hold ``..``."""
    parts_of_key = key.split("/")
    return "/".join(
        part.replace(".", "%2E") if part in {".", ".."} else part for part in parts_of_key
    )
