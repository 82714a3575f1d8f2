"""The tasks of a prediction: plan the run, segment its shards, publish the index."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import task_run
from prefect.tasks import Task, exponential_backoff

from tasks import parts, stores
from tasks.artifacts import Progress, publish_markdown, publish_table
from tasks.manifest import Manifest
from tasks.plan import Plan, missing_shards, plan_run
from tasks.predict_config import PredictConfig
from tasks.predict_pages import (
    class_rows,
    find_examples,
    prediction_page,
    status_rows,
    weak_spot_rows,
)
from tasks.shards import PredictSummary, ShardReport, summarise, write_part

__all__ = [
    "PredictConfig",
    "PredictError",
    "PredictSummary",
    "plan_prediction",
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
    """The shards that this attempt finished, and how long they took together, by the clock."""

    reports: Sequence[ShardReport]
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


def segment_shards(plan: Plan, model_url: str, config: PredictConfig) -> Segmented:
    """Segment the missing shards, ``config.concurrency`` at a time, each as a task run.

    A shard that fails does not stop the others, until `MAX_FAILED_SHARDS` have failed.

    Raises:
        PredictError: shards failed; the parts of the others are kept.
    """
    start = time.monotonic()
    reports: list[ShardReport] = []
    errors: dict[int, Exception] = {}
    waiting: dict[PrefectFuture[ShardReport], int] = {}
    missing = iter(plan.missing)
    total = plan.manifest.num_rows
    done = total - plan.num_missing
    with Progress("predict-progress", total=total, done=done, description="Segmenting") as bar:
        while True:
            free = config.concurrency - len(waiting) if len(errors) < MAX_FAILED_SHARDS else 0
            for _, shard in zip(range(free), missing, strict=False):
                future = segment_shard.submit(plan.manifest, shard, model_url, config, bar)
                waiting[future] = shard
            if not waiting:
                break
            future = next(as_completed(list(waiting)))
            shard = waiting.pop(future)
            try:
                reports.append(future.result())
            except Exception as error:  # noqa: BLE001 - told below, when the others are done
                errors[shard] = error
    _require_no_errors(errors, plan)
    return Segmented(reports=reports, seconds=time.monotonic() - start)


@task(
    task_run_name="shard-{number:05d}",
    cache_policy=NO_CACHE,
    persist_result=False,
    retries=RETRIES,
    retry_delay_seconds=RETRY_DELAYS,
    retry_jitter_factor=1,
    retry_condition_fn=_is_transient,
)
def segment_shard(
    manifest: Manifest, number: int, model_url: str, config: PredictConfig, progress: Progress
) -> ShardReport:
    """Segment one shard and put its part; see `tasks.shards`."""
    counted = [0]

    def advance(count: int) -> None:
        counted.append(count)
        progress.advance(count)

    try:
        report = write_part(
            manifest,
            number,
            model_url,
            config,
            advance=advance,
            last_attempt=task_run.run_count > RETRIES,
        )
    except Exception:
        progress.advance(-sum(counted))  # the next attempt counts them again
        raise
    get_run_logger().info("shard-%05d: %s", number, report.line())
    return report


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
    summary = summarise(plan, segmented.reports, segmented.seconds)
    if plan.missing:
        _show(summary, plan)
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


def _require_no_errors(errors: dict[int, Exception], plan: Plan) -> None:
    if not errors:
        return
    shard, error = min(errors.items())
    raise PredictError(
        f"{len(errors):,} of {len(plan.missing):,} shards failed; first: shard-{shard:05d}: "
        f"{type(error).__name__}: {error}. Finished parts are kept; rerun to do the rest"
    ) from error
