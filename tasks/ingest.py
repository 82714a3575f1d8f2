"""The tasks of an ingest: list the source, audit and stage it, publish the dataset."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict, Field

from fcn.images import MAX_PIXELS
from tasks import stores
from tasks.artifacts import Progress, publish_markdown, publish_table
from tasks.assets import materialise
from tasks.audit import NUM_THREADS, audit, counts_by_kind, find_values, require_no_errors
from tasks.class_files import derive_classes, find_classes, find_further_classes
from tasks.dataset import DatasetError, DatasetInfo, Finding
from tasks.ingest_pages import audit_page, dataset_page
from tasks.labels import ClassTable
from tasks.layouts import Layout, Source, find_samples
from tasks.staging import MAX_FILE_BYTES, Staging, require_free

TABLE_ROWS = 1000
"""Findings shown in the run's table; ``dataset.json`` holds all."""


class IngestConfig(BaseModel):
    """Settings of `ingest`. The defaults suit the public datasets."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    strict: bool = Field(
        True,
        description="Publish nothing if the audit finds an error. Otherwise bad samples are left "
        "out and counted.",
    )
    ignore_values: tuple[Annotated[int, Field(ge=0, le=65_535)], ...] | None = Field(
        None,
        description="Mask values that belong to no class and become 255, besides 255 itself. "
        "Empty: 11 for CamVid folders with eleven classes, else none.",
    )
    val_fraction: float = Field(
        0.2,
        ge=0,
        lt=1,
        description="Share of the samples for val, where the source does not say which they are.",
    )
    seed: int = Field(
        0,
        ge=0,
        lt=2**32,
        description="Of that choice. The same seed chooses the same samples.",
    )
    overwrite: bool = Field(
        False, description="Replace a dataset of other content that is at dataset_url."
    )
    max_image_pixels: int = Field(
        MAX_PIXELS,
        ge=1,
        le=MAX_PIXELS,
        description="Images and masks with more pixels, by their header, are errors.",
    )
    max_file_bytes: int = Field(
        MAX_FILE_BYTES,
        ge=1 << 20,
        le=1 << 34,
        description="Size in bytes at which a Parquet file of the dataset ends.",
    )
    num_threads: int = Field(
        NUM_THREADS, ge=1, le=256, description="Files read and decoded at the same time."
    )


@task(task_run_name="list the source", cache_policy=NO_CACHE)
def list_source(
    source_url: str,
    dataset_url: str,
    layout: Layout,
    classes: Sequence[str] | str | None,
    config: IngestConfig,
) -> tuple[Source, ClassTable]:
    """Find the samples and classes of a source, once the output is known to be writable."""
    require_free(dataset_url, overwrite=config.overwrite)
    source = find_samples(source_url, layout, val_fraction=config.val_fraction, seed=config.seed)
    table = find_classes(source, classes, config.ignore_values)
    table = table or _derived(source, config)
    further = find_further_classes(source, config.ignore_values)
    table = replace(
        table,
        further={head: found or _derived(source, config, head) for head, found in further.items()},
    )
    splits = Counter(pair.split for pair in source.pairs)
    get_run_logger().info(
        "layout %s: %s samples (%s), %d classes from %s; while pairing files: %s",
        source.layout,
        f"{len(source.pairs):,}",
        ", ".join(f"{name} {count:,}" for name, count in splits.items()),
        len(table.classes),
        table.origin,
        counts_by_kind(source.findings),
    )
    for head, found in table.further.items():
        get_run_logger().info("head %s: %d classes from %s", head, len(found.classes), found.origin)
    return source, table


def _derived(source: Source, config: IngestConfig, head: str = "") -> ClassTable:
    """The classes that the masks of a head show.

    Raises:
        DatasetError: they do not tell the classes.
    """
    try:
        values = find_values(
            source, max_pixels=config.max_image_pixels, num_threads=config.num_threads, head=head
        )
        return derive_classes(values, config.ignore_values)
    except DatasetError as error:
        if not head:
            raise
        raise DatasetError(
            f"head {head}: {error}. The class file of this head is classes-{head}.csv (.json, "
            ".txt), beside its folder"
        ) from error


@task(task_run_name="audit every sample", cache_policy=NO_CACHE)
def audit_source(
    source: Source, table: ClassTable, staging: Staging, config: IngestConfig
) -> list[Finding]:
    """Audit a source and stage its good samples.

    Raises:
        DatasetError: errors were found, and ``config.strict`` is set.
    """
    start = time.monotonic()
    with Progress("ingest-progress", total=len(source.pairs), description="Auditing") as progress:
        findings = audit(
            source,
            table,
            staging,
            max_pixels=config.max_image_pixels,
            num_threads=config.num_threads,
            advance=progress.advance,
        )
    seconds = time.monotonic() - start
    get_run_logger().info(
        "audited %s samples in %.1f s (%.0f/s), %s without error; found: %s",
        f"{len(source.pairs):,}",
        seconds,
        len(source.pairs) / max(seconds, 1e-3),
        f"{staging.num_rows:,}",
        counts_by_kind(findings),
    )
    page = audit_page(source, findings, staging.num_rows)
    publish_markdown("ingest-audit", page, "What is wrong with the source")
    if findings:
        publish_table("ingest-findings", [vars(found) for found in findings[:TABLE_ROWS]])
    if config.strict:
        require_no_errors(findings, stores.redact(source.url))
    return findings


@task(task_run_name="publish the dataset", cache_policy=NO_CACHE)
def publish_dataset(
    staging: Staging,
    dataset_url: str,
    source: Source,
    findings: Sequence[Finding],
    config: IngestConfig,
) -> DatasetInfo:
    """Put the staged dataset at its URL, unless the same is there."""
    start = time.monotonic()
    info, is_new = staging.publish(
        dataset_url,
        source=stores.redact(source.url),
        audit=findings,
        settings={"layout": source.layout, **config.model_dump(mode="json")},
        overwrite=config.overwrite,
    )
    get_run_logger().info(
        "%s %s: %s; digest %s; %.1f s",
        "published" if is_new else "nothing written, the same dataset is at",
        stores.redact(dataset_url),
        ", ".join(
            f"{split.name} {split.rows:,} rows, files: {len(split.files)}"
            for split in info.splits.values()
        ),
        info.digest[:12],
        time.monotonic() - start,
    )
    publish_markdown("ingest-dataset", dataset_page(info), "Splits and classes")
    materialise(dataset_url, source.url, name="dataset", digest=info.digest)
    return info
