"""The tasks of a prediction: plan the run, segment its shards, publish the index."""

import time

from prefect import get_run_logger, task

from tasks import child_runs, fan_out, parts
from tasks import manifest as manifests
from tasks.artifacts import publish_markdown, publish_table
from tasks.assets import materialise
from tasks.fan_out import shards_name
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
from tasks.retrying import RETRYING
from tasks.segment import PredictError, Segmented, segment_shards
from tasks.shards import PredictSummary, summarise
from tasks.wording import number_of

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

NUM_FAILURES = 20
"""Failed images that the run's page names."""


@task(
    task_run_name="plan the run",
    **RETRYING,
)
def plan_prediction(
    collection_url: str, model_url: str, output_url: str, config: PredictConfig
) -> Plan:
    """Find out what there is to do; see `tasks.plan.plan_run`.

    Raises:
        StoreError, CheckpointError, BackendError, DeviceError: see there.
        FanOutError: shards cannot be segmented where they should be.
    """
    start = time.monotonic()
    fan_out.require(config, collection_url, model_url, output_url)
    if config.fan_out == "work-pool":
        child_runs.find_deployment(config.deployment)
    plan = plan_run(collection_url, model_url, output_url, config)
    manifest, seconds = plan.manifest, time.monotonic() - start
    if plan.missing:
        get_run_logger().info(
            "run %05d: %s in %s; to do: %s in %s; deleted since: %s; planned in %.1f s",
            manifest.card.run,
            number_of(manifest.num_rows, "image"),
            number_of(manifest.num_shards, "shard"),
            number_of(plan.num_missing, "image"),
            number_of(len(plan.missing), "shard"),
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


@task(
    task_run_name="plan the partition",
    **RETRYING,
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
    **RETRYING,
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
    page = prediction_page(summary, failures, examples)
    publish_markdown("predict-summary", page, "What became of the images, and some masks")


def _require_all_parts(manifest: Manifest) -> None:
    if missing := missing_shards(manifest, parts.listed(manifest.output_url)):
        raise PredictError(
            f"{len(missing):,} of {manifest.num_shards:,} parts of run {manifest.card.run:05d} are "
            f"not there: part-{missing[0]:05d} and so on, although they were written; see what "
            f"stands in their place, then rerun"
        )
