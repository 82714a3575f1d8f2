"""The task that makes a page of a prediction's overlays."""

import time
from dataclasses import dataclass

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from tasks import manifest as manifests
from tasks import stores
from tasks.artifacts import publish_markdown
from tasks.browse_page import choose, pictures, render
from tasks.markdown import Markdown, escape
from tasks.wording import number_of

__all__ = ["BrowseSummary", "make_page"]

PAGE_NAME = "browse.html"

MARKDOWN_PICTURES = 12
"""Overlays that the run's page shows; the others are in the file."""


@dataclass(frozen=True, kw_only=True)
class BrowseSummary:
    """A page, and what it was chosen from.

    Attributes:
        page_url: where the page is; a browser opens it.
        images: rows, the newest of each key.
        failed: of these, those without a mask.
        shown: images on the page.
        seconds: how long it took, by the clock.
    """

    page_url: str
    images: int
    failed: int
    shown: int
    seconds: float


@task(task_run_name="make the page", cache_policy=NO_CACHE)
def make_page(
    output_url: str, page_url: str | None, images_per_section: int, seed: int
) -> BrowseSummary:
    """Choose images, draw their overlays, and write the page; see `tasks.browse_page`.

    Raises:
        StoreError: no output of predict is there, it cannot be read, or the page not be written.
    """
    start = time.monotonic()
    url = page_url or stores.join(output_url, PAGE_NAME)
    runs = manifests.runs(output_url)
    if not runs:
        raise stores.StoreError(f"no manifest at {stores.redact(output_url)}: no output of predict")
    model = manifests.read(output_url, runs[-1]).card.model
    classes, further = model.label_classes(), model.further_label_classes()
    choice = choose(output_url, classes, count=images_per_section, seed=seed)
    found = list(pictures(output_url, choice.keys, classes, further))
    stores.write_bytes(url, render(output_url, choice, iter(found), classes, seed, further))
    by_key = {picture.key: picture for picture in found}
    first = [key for key in choice.keys if key in by_key][:MARKDOWN_PICTURES]
    shown = [
        f"{Markdown(f'![{escape(key)}]({by_key[key].overlay})')}\n\n"
        f"{escape(key)}: {escape(by_key[key].text)}"
        for key in first
    ]
    counted = f"{len(by_key):,} of {choice.statuses.total():,} images"
    head = [
        f"# {escape(stores.redact(output_url))}",
        f"{counted} are shown at {escape(stores.redact(url))}; some of them:",
    ]
    publish_markdown("browse", "\n\n".join([*head, *shown]), "Some masks over their images")
    summary = BrowseSummary(
        page_url=stores.redact(url),
        images=choice.statuses.total(),
        failed=choice.statuses["failed"],
        shown=len(by_key),
        seconds=time.monotonic() - start,
    )
    count = number_of(summary.shown, "image")
    get_run_logger().info("%s shown at %s", count, summary.page_url)
    return summary
