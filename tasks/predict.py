"""The tasks of a prediction: plan the run, segment its shards, publish the index."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import task_run
from prefect.tasks import Task, exponential_backoff

from fcn.backends import find_backend
from tasks import child_runs, fan_out, parts, stores
from tasks import manifest as manifests
from tasks.artifacts import Progress, publish_markdown, publish_table
from tasks.assets import materialise
from tasks.fan_out import KEPT, Partition, shards_name
from tasks.gpu import gpu_place
from tasks.manifest import Manifest
from tasks.plan import Plan, missing_shards, plan_run
from tasks.predict_config import PredictConfig, run_digest
from tasks.predict_pages import (
    class_rows,
    find_examples,
    prediction_page,
    status_rows,
    weak_spot_rows,
)
from tasks.shards import PartitionReport, PredictSummary, ShardReport, summarise, write_part

__all__ = [
    "PredictConfig",
    "PredictError",
    "PredictSummary",
    "plan_partition",
    "plan_prediction",
    "publish_partition",
    "publish_prediction",
    "require_few_failed",
    "segment_shards",
]

MAX_FAILED_SHARDS = 3
"""Shards that may fail before no further one is begun: by then it is not the images."""

RETRIES = 4
"""Further attempts at a task whose store is out, with growing pauses."""

RETRY_DELAYS = exponential_backoff(backoff_factor=5)
"""Those pauses: 5, 10, 20, 40 s, give or take."""

NUM_FAILURES = 20
"""Failed images that the run's page names."""


class PredictError(Exception):
    """A prediction that ended without all it was asked for; what is done is kept."""


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What this attempt finished, itself and in child runs, and how long it took by the clock."""

    reports: Sequence[ShardReport]
    elsewhere: Sequence[PartitionReport]
    seconds: float


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a store may have recovered by the next attempt."""
    return isinstance(state.data, BaseException) and stores.is_transient(state.data)


@task(
    task_run_name="plan the run",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_jitter_factor=1,
    retry_condition_fn=_is_transient,
)
def plan_prediction(
    collection_url: str, model_url: str, output_url: str, config: PredictConfig
) -> Plan:
    """Find out what there is to do; see `tasks.plan.plan_run`."""
    start = time.monotonic()
    fan_out.require(config, collection_url, model_url, output_url)
    if config.fan_out == "work-pool":
        child_runs.find_deployment(config.deployment)
    plan = plan_run(collection_url, model_url, output_url, config)
    manifest, seconds = plan.manifest, time.monotonic() - start
    if plan.missing:
        get_run_logger().info(
            "run %05d: %s images in %s shards; to do: %s images in %s shards; deleted since: %s; "
            "planned in %.1f s",
            manifest.card.run,
            f"{manifest.num_rows:,}",
            f"{manifest.num_shards:,}",
            f"{plan.num_missing:,}",
            f"{len(plan.missing):,}",
            f"{plan.num_deleted:,}",
            seconds,
        )
    else:
        get_run_logger().info(
            "nothing to do: every image is done; deleted since: %s (%.1f s)",
            f"{plan.num_deleted:,}",
            seconds,
        )
    return plan


def segment_shards(
    plan: Plan, model_url: str, config: PredictConfig, within: range | None = None
) -> Segmented:
    """Segment the missing shards where ``config.fan_out`` says, so many at a time.

    A shard, partition or child run that fails does not stop the others, until
    `MAX_FAILED_SHARDS` have failed.

    Args:
        plan: What there is to do.
        model_url: The model that the run was planned with.
        config: The settings that the run was planned with.
        within: The shards that are this flow run's, among them all missing ones; ``None``: all.

    Raises:
        PredictError: shards failed; the parts of the others are kept.
        GpuLimitError: the worker names a limit of its GPU that the server does not have.
    """
    start = time.monotonic()
    shards = range(plan.manifest.num_shards) if within is None else within
    todo = fan_out.partitions(plan, shards, config)
    total = sum(plan.manifest.num_images(shard) for shard in shards)
    done = total - plan.num_missing
    reports: Sequence[ShardReport] = ()
    elsewhere: Sequence[PartitionReport] = ()
    with Progress("predict-progress", total=total, done=done, description="Segmenting") as bar:
        if not todo:
            pass
        elif config.fan_out == "here":
            reports = _segment_here(plan, todo, model_url, config, bar)
        elif config.fan_out == "work-pool":
            elsewhere = _segment_in_child_runs(plan, todo, model_url, config, bar)
        else:
            reports = _segment_on_cluster(plan, todo, model_url, config, bar)
    return Segmented(reports=reports, elsewhere=elsewhere, seconds=time.monotonic() - start)


def _segment_here(
    plan: Plan, todo: Sequence[Partition], model_url: str, config: PredictConfig, bar: Progress
) -> list[ShardReport]:
    given = RunInputs(plan.manifest, model_url, config, at_once=1)

    def submit(partition: Partition) -> PrefectFuture[list[ShardReport]]:
        return segment_partition.submit(given, partition.missing, bar)

    _, device = find_backend(plan.manifest.card.backend, config.device, config.precision)
    with gpu_place(str(device)):
        return _segment_partitions(todo, submit, config.concurrency)


def _segment_on_cluster(
    plan: Plan, todo: Sequence[Partition], model_url: str, config: PredictConfig, bar: Progress
) -> list[ShardReport]:
    given = RunInputs(*fan_out.for_others(plan.manifest, model_url, config), config.concurrency)
    network_cores = plan.manifest.card.network_cores or 1
    with fan_out.cluster(config, network_cores) as runner, fan_out.counted(plan, bar):

        def submit(partition: Partition) -> PrefectFuture[list[ShardReport]]:
            parameters = {"given": given, "shards": partition.missing, "progress": None}
            future: PrefectFuture[list[ShardReport]] = runner.submit(segment_partition, parameters)
            return future

        return _segment_partitions(todo, submit, config.partitions_at_once)


def _segment_in_child_runs(
    plan: Plan, todo: Sequence[Partition], model_url: str, config: PredictConfig, bar: Progress
) -> Sequence[PartitionReport]:
    manifest, model_url, config = fan_out.for_others(plan.manifest, model_url, config)
    with fan_out.counted(plan, bar):
        children = child_runs.segment(manifest, todo, model_url, config)
    if children.failures:
        raise PredictError(
            f"{len(children.failures):,} of {len(todo):,} partitions failed: "
            f"{'; '.join(children.failures)}{KEPT}"
        )
    return children.reports


def _segment_partitions(
    todo: Sequence[Partition],
    submit: Callable[[Partition], PrefectFuture[list[ShardReport]]],
    at_once: int,
) -> list[ShardReport]:
    """The reports of task runs, one for each partition, ``at_once`` at a time.

    Raises:
        PredictError: partitions failed.
    """
    reports: list[ShardReport] = []
    errors: dict[tuple[int, int], Exception] = {}
    waiting: dict[PrefectFuture[list[ShardReport]], Partition] = {}
    rest = iter(todo)
    while True:
        free = at_once - len(waiting) if len(errors) < MAX_FAILED_SHARDS else 0
        for partition in islice(rest, free):
            waiting[submit(partition)] = partition
        if not waiting:
            break
        future = next(as_completed(list(waiting)))
        partition = waiting.pop(future)
        try:
            reports += future.result()
        except Exception as error:  # noqa: BLE001 - told below, when the others are done
            errors[partition.missing[0], partition.missing[-1]] = error
    if errors:
        unit = "partitions" if todo[0].is_several else "shards"
        raise PredictError(_first(errors, len(todo), unit) + KEPT) from min(errors.items())[1]
    return reports


@dataclass(frozen=True)
class RunInputs:
    """What all tasks of a run are given; ``at_once`` shards of a task are in work at once."""

    manifest: Manifest
    model_url: str
    config: PredictConfig
    at_once: int


def _task_name() -> str:
    shards = task_run.parameters["shards"]
    return shards_name(shards[0], shards[-1])


@task(
    task_run_name=_task_name,
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_jitter_factor=1,
    retry_condition_fn=_is_transient,
)
def segment_partition(
    given: RunInputs, shards: Sequence[int], progress: Progress | None
) -> list[ShardReport]:
    """Segment shards and put their parts; see `tasks.shards`.

    A shard of several that has a part by now, put by an earlier attempt or by another run,
    is left out.
    """
    log = get_run_logger()
    attempt = task_run.run_count
    errors: dict[tuple[int, int], Exception] = {}

    def segment(number: int) -> ShardReport | None:
        if len(errors) >= MAX_FAILED_SHARDS:
            return None
        try:
            if len(shards) > 1 and _is_put(given.manifest, number):
                if progress and attempt == 1:
                    progress.advance(given.manifest.num_images(number))
                log.info("shard-%05d: has its part already", number)
                return None
            report = _write_part(given, number, progress, last_attempt=attempt > RETRIES)
        except Exception as error:  # noqa: BLE001 - told below, when the others are done
            errors[number, number] = error
            return None
        log.info("shard-%05d: %s", number, report.line())
        return report

    with ThreadPoolExecutor(given.at_once, "shard") as threads:
        reports = list(filter(None, threads.map(segment, shards)))
    for error in errors.values():
        if len(shards) == 1 or stores.is_transient(error):
            raise error  # as it is: the latter is tried again
    if errors:
        raise PredictError(_first(errors, len(shards), "shards"))
    return reports


def _write_part(
    given: RunInputs, number: int, progress: Progress | None, *, last_attempt: bool
) -> ShardReport:
    """The shard's part, its images counted as they are done."""
    counted = [0]

    def advance(count: int) -> None:
        if progress:
            counted.append(count)
            progress.advance(count)

    try:
        return write_part(
            given.manifest,
            number,
            given.model_url,
            given.config,
            advance=advance,
            last_attempt=last_attempt,
        )
    except Exception:
        if progress:
            progress.advance(-sum(counted))  # the next attempt counts them again
        raise


def _is_put(manifest: Manifest, number: int) -> bool:
    url = parts.part_url(manifest.output_url, manifest.card.run, number)
    return stores.exists(url) and stores.kind_of(url) == "object"


@task(
    task_run_name="plan the partition",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_jitter_factor=1,
    retry_condition_fn=_is_transient,
)
def plan_partition(output_url: str, run: int, shards: range, config: PredictConfig) -> Plan:
    """Find out which shards of a partition have no part yet.

    Raises:
        PredictError: the run has no such shards, or was planned with other settings.
        StoreError: there is no such run.
    """
    manifest = manifests.read(output_url, run)
    if not 0 <= shards.start < shards.stop <= manifest.num_shards:
        raise PredictError(
            f"shards {shards.start} to {shards.stop - 1} of run {run:05d}, which has "
            f"{manifest.num_shards:,}: 0 to {manifest.num_shards - 1}"
        )
    config = config.model_copy(update={"backend": manifest.card.backend})
    if run_digest(manifest.card.model.digest, config) != manifest.card.run_digest:
        raise PredictError(
            f"run {run:05d} was planned with other settings than those of this partition, or this "
            "machine takes precision auto for another one; start partitions by predict"
        )
    there = set(parts.numbers(output_url, run))
    missing = tuple(shard for shard in shards if shard not in there)
    get_run_logger().info(
        "run %05d, %s: %s of %s shards to do",
        run,
        shards_name(shards.start, shards.stop - 1),
        f"{len(missing):,}",
        f"{len(shards):,}",
    )
    return Plan(manifest=manifest, missing=missing, num_deleted=0)


def publish_partition(segmented: Segmented) -> None:
    """Show what a child run did, on its page and for its parent."""
    child_runs.publish(segmented.reports)


@task(
    task_run_name="publish the index",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_jitter_factor=1,
    retry_condition_fn=_is_transient,
)
def publish_prediction(plan: Plan, segmented: Segmented) -> PredictSummary:
    """Write the index once all parts of the run are there, and show what came out.

    Raises:
        PredictError: parts are not there.
    """
    manifest = plan.manifest
    _require_all_parts(manifest)
    if not parts.is_indexed(manifest.output_url):
        model = manifest.card.model
        parts.write_index(manifest.output_url, model.label_classes(), model.further_label_classes())
    summary = summarise(plan, segmented.reports, segmented.seconds, segmented.elsewhere)
    if plan.missing:
        _show(summary, plan)
        card = manifest.card
        materialise(
            manifest.output_url,
            card.collection_url,
            card.model.url,
            name="prediction",
            run=card.run,
            run_digest=card.run_digest,
        )
    return summary


def require_few_failed(summary: PredictSummary, max_failed: float) -> None:
    """End the run failed when too many images did.

    Raises:
        PredictError: a larger share of the images failed than ``max_failed``.
    """
    if summary.failed <= max_failed * summary.rows:
        return
    [first] = parts.failures(summary.output_url, summary.run, limit=1)
    raise PredictError(
        f"{summary.failed:,} of {summary.rows:,} images failed "
        f"({100 * summary.failed / summary.rows:.3g} %), above max_failed={100 * max_failed:g} %; "
        f"first: {first['key']}: {first['error_class']}: {first['error']}. Parts and index are "
        "kept; a rerun does those that could not be read, and images that changed"
    )


def _show(summary: PredictSummary, plan: Plan) -> None:
    """The run's artifacts: tables, and a page with all of them, failures and overlays."""
    failures = parts.failures(plan.manifest.output_url, summary.run, NUM_FAILURES)
    try:
        examples = find_examples(plan.manifest)
    except Exception as error:  # noqa: BLE001 - pictures are decoration
        get_run_logger().warning("no example pictures: %s: %s", type(error).__name__, error)
        examples = []
    publish_table("predict-counts", status_rows(summary), "Images by status")
    publish_table("predict-classes", class_rows(summary), "Classes: share, and drift in points")
    publish_table("predict-weak-spots", weak_spot_rows(summary), "What to label next")
    publish_markdown("predict-summary", prediction_page(summary, failures, examples))


def _require_all_parts(manifest: Manifest) -> None:
    if missing := missing_shards(manifest, parts.listed(manifest.output_url)):
        raise PredictError(
            f"{len(missing):,} of {manifest.num_shards:,} parts of run {manifest.card.run:05d} are "
            f"not there: part-{missing[0]:05d} and so on, although they were written; see what "
            f"stands in their place, then rerun"
        )


def _first(errors: dict[tuple[int, int], Exception], total: int, unit: str) -> str:
    shards, error = min(errors.items())
    return (
        f"{len(errors):,} of {total:,} {unit} failed; first: {shards_name(*shards)}: "
        f"{type(error).__name__}: {error}"
    )
