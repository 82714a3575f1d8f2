"""The flow that shows what a prediction has made."""

from typing import Annotated

from prefect import flow
from pydantic import Field

from tasks.browse import BrowseSummary, make_page
from tasks.hooks import HOOKS
from tasks.run_names import run_name
from tasks.run_start import start_run


@flow(name="browse", flow_run_name=run_name("{}", "output_url"), **HOOKS)
def browse(
    output_url: str,
    page_url: str | None = None,
    images_per_section: Annotated[int, Field(ge=1, le=100)] = 8,
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0,
) -> BrowseSummary:
    """Make one page of a prediction's overlays: random, least confident, by class, failed.

    The page is one HTML file that needs nothing beside it and stays below about 8 MB. The same
    rows and seed give the same images.

    Args:
        output_url: Where predict wrote.
        page_url: Where the page goes; empty: browse.html in the output.
        images_per_section: Images at random, least confident, and with most of each class.
        seed: Of the choice at random.

    Returns:
        Where the page is, and how many images it shows.

    Raises:
        StoreError: no output at output_url, it cannot be read, or the page not be written.
    """
    start_run(output_url, page_url)
    return make_page(output_url, page_url, images_per_section, seed)
