"""The task of a compaction: the runs of an output become one."""

import time
from dataclasses import dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks import manifest as manifests
from tasks import parts, stores
from tasks.artifacts import Progress
from tasks.merge import plan_merge, remove_merged, write_merged

__all__ = ["CompactSummary", "compact_output"]


@dataclass(frozen=True, kw_only=True)
class CompactSummary:
    """What a compaction came to.

    Attributes:
        output_url: where the output is.
        run: number of the one run there is now.
        merged: runs that were merged into it now; 0 where there was one alone.
        rows: rows it has, one of each key.
        parts: parts it has.
        seconds: how long it took, by the clock.
    """

    output_url: str
    run: int
    merged: int
    rows: int
    parts: int
    seconds: float


@task(task_run_name="merge the runs", cache_policy=NO_CACHE)
def compact_output(output_url: str) -> CompactSummary:
    """Merge the runs of an output into one, or finish what was cut off; see `tasks.merge`.

    Raises:
        MergeError: the newest run is not finished, or an older one is damaged.
        StoreError: no output of predict is there, or its store cannot be read or written.
    """
    start = time.monotonic()
    stores.require_writable(output_url)
    merge = plan_merge(output_url)
    if merge:
        total = merge.manifest.num_rows
        to_do = sum(merge.manifest.num_images(shard) for shard in merge.missing)
        with Progress(
            "compact-progress",
            total=total,
            done=total - to_do,
            description="Merging",
            unit="rows",
        ) as progress:
            write_merged(merge, advance=progress.advance)
        remove_merged(merge)
    [run] = manifests.runs(output_url)[-1:]
    cards = [part for part in parts.committed(output_url) if part.run == run]
    summary = CompactSummary(
        output_url=stores.redact(output_url),
        run=run,
        merged=len(merge.sources) if merge else 0,
        rows=sum(part.rows for part in cards),
        parts=len(cards),
        seconds=time.monotonic() - start,
    )
    get_run_logger().info(
        "%d runs merged into run %05d: %s rows in %s parts, %.1f s",
        summary.merged,
        run,
        f"{summary.rows:,}",
        f"{summary.parts:,}",
        summary.seconds,
    )
    return summary
