"""The flow that tells where a mask comes from."""

from prefect import flow

from tasks.hooks import HOOKS
from tasks.lineage import trace
from tasks.run_names import run_name
from tasks.run_start import start_run


@flow(name="lineage", flow_run_name=run_name("{} in {}", "key", "output_url"), **HOOKS)
def lineage(key: str, output_url: str) -> dict[str, str]:
    """Tell where the row of an image comes from: run, model, dataset, settings, code, scores.

    Each link is followed by a digest: from the row to its run, to the model file, to the
    dataset it was trained on and the weights it began with. What lies at a URL by now is
    compared with its digest; a link that cannot be followed says why. Nothing is changed.

    Args:
        key: Key of the image, as in the column key of the parts.
        output_url: Where predict wrote.

    Returns:
        A line for each link, by its name.

    Raises:
        LineageError: the key has no row.
        StoreError: no output at output_url, or it cannot be read.
    """
    start_run(output_url)
    return trace(key, output_url)
