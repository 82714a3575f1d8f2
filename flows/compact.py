"""The flow that merges the runs of a prediction into one."""

from prefect import flow

from tasks.compact import CompactSummary, compact_output
from tasks.hooks import HOOKS
from tasks.run_names import run_name
from tasks.run_start import start_run


@flow(name="compact", flow_run_name=run_name("{}", "output_url"), **HOOKS)
def compact(output_url: str) -> CompactSummary:
    """Merge all runs over a prediction's output into one: the newest row of every key.

    Afterwards a plain reader of parts/**/*.parquet sees each key once. Rows are taken over as
    they are; masks are not decoded. Killed at any moment, the output gives every reader of
    tasks.parts.read the same rows as before, and the same command again finishes the work.
    Later runs of predict do only what is new or has changed, as ever.

    Args:
        output_url: Where predict wrote; its newest run is finished.

    Returns:
        How many runs were merged, and what the merged one holds.

    Raises:
        MergeError: the newest run is not finished, or a part is damaged; nothing is removed.
        StoreError: no output at output_url, or it cannot be read or written.
    """
    start_run(output_url)
    return compact_output(output_url)
