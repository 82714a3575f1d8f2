"""The shards of a prediction: segmented here, by child runs, or on a cluster."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from prefect import get_run_logger, task
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import task_run

from fcn.backends import find_backend
from tasks import child_runs, fan_out, parts, stores
from tasks.artifacts import Progress
from tasks.fan_out import KEPT, Partition, shards_name
from tasks.gpu import gpu_place
from tasks.manifest import Manifest
from tasks.plan import Plan
from tasks.predict_config import PredictConfig
from tasks.retrying import RETRIES, RETRYING
from tasks.shards import PartitionReport, ShardReport, write_part

__all__ = ["PredictError", "RunInputs", "Segmented", "segment_partition", "segment_shards"]

MAX_FAILED_SHARDS = 3
"""Shards that may fail before no further one is begun: by then it is not the images."""


class PredictError(Exception):
    """A prediction that ended without all it was asked for; what is done is kept."""


@dataclass(frozen=True, kw_only=True)
class Segmented:
    """What this attempt finished, itself and in child runs, and how long it took by the clock."""

    reports: Sequence[ShardReport]
    elsewhere: Sequence[PartitionReport]
    seconds: float


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
    persist_result=False,
    **RETRYING,
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


def _first(errors: dict[tuple[int, int], Exception], total: int, unit: str) -> str:
    shards, error = min(errors.items())
    return (
        f"{len(errors):,} of {total:,} {unit} failed; first: {shards_name(*shards)}: "
        f"{type(error).__name__}: {error}"
    )
