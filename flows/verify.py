"""The flow that checks what a prediction has written."""

from prefect import flow

from tasks.hooks import HOOKS
from tasks.run_names import run_name
from tasks.run_start import start_run
from tasks.verify import VerifySummary, verify_output


@flow(name="verify", flow_run_name=run_name("{}", "output_url"), **HOOKS)
def verify(output_url: str) -> VerifySummary:
    """Check a prediction's output: rows against manifest, checksums, and that every mask decodes.

    Every key of a manifest has exactly one row, in order, in the part its shard says; every
    part holds the bytes it was written with; the index names just these parts; every mask
    decodes at its row's height and width, to classes there are, with the pixels of each class
    that its row tells. Nothing is changed. Any finding ends the run failed, with what to do.

    Args:
        output_url: Where predict wrote.

    Returns:
        How much was checked.

    Raises:
        VerifyError: something is not as it was written.
        StoreError: no output at output_url, or it cannot be read.
    """
    start_run(output_url)
    return verify_output(output_url)
