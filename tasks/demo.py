"""The tasks of the demo: paint its images, and put a page of its results together."""

import time
from dataclasses import dataclass

import numpy as np
from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from fcn.classes import Classes
from fcn.draw import Panel, colourise, contact_sheet, overlay, png_bytes
from fcn.images import decode_image
from fcn.masks import decode_mask
from tasks import parts, stores
from tasks.artifacts import Progress
from tasks.pipeline import PipelineSummary
from tasks.scenes import SCENE_CLASSES, Scenes, make_scenes

SHEET_NAME = "contact-sheet.png"

SHEET_IMAGES = 8
"""Images of the collection that the contact sheet shows."""

MAX_FAILURES = 3


@dataclass(frozen=True, kw_only=True)
class DemoSummary:
    """What the demo made.

    Attributes:
        mean_iu: Of the val split.
        num_images: Images of the collection.
        num_masks: Of these, those with a mask.
        failures: Key and reason of the others, up to `MAX_FAILURES`.
        sheet_url: Images of the collection beside their masks.
        report_url: The report on the val split.
        output_url: Manifest, parts and masks.
    """

    mean_iu: float
    num_images: int
    num_masks: int
    failures: tuple[tuple[str, str], ...]
    sheet_url: str
    report_url: str
    output_url: str


@task(task_run_name="paint scenes", cache_policy=NO_CACHE)
def paint_scenes(url: str, num_train: int, num_val: int, num_unlabelled: int, seed: int) -> Scenes:
    """Write the labelled set and the collection; files that are there already stay."""
    start = time.monotonic()
    total = num_train + num_val + num_unlabelled
    with Progress("demo-scenes", total=total, description="Painting", unit="scenes") as progress:
        scenes = make_scenes(
            stores.join(url, "scenes"),
            num_train=num_train,
            num_val=num_val,
            num_unlabelled=num_unlabelled,
            seed=seed,
            advance=progress.advance,
        )
    get_run_logger().info("painted %d scenes in %.1f s", total, time.monotonic() - start)
    return scenes


@task(task_run_name="contact sheet", cache_policy=NO_CACHE)
def publish_demo(summary: PipelineSummary, url: str) -> DemoSummary:
    """Put images of the collection and their masks on one picture.

    Raises:
        StoreError: an image or a part cannot be read, or the sheet cannot be written.
    """
    sheet_url = stores.join(url, SHEET_NAME)
    stores.write_bytes(sheet_url, png_bytes(draw_sheet(summary.output_url, SCENE_CLASSES)))
    get_run_logger().info("contact sheet: %s", stores.redact(sheet_url))
    failed = parts.failures(summary.output_url, summary.prediction.run, MAX_FAILURES)
    return DemoSummary(
        mean_iu=summary.evaluation.mean_iu,
        num_images=summary.prediction.rows,
        num_masks=summary.prediction.rows - summary.prediction.failed,
        failures=tuple((row["key"], row["error"]) for row in failed),
        sheet_url=sheet_url,
        report_url=summary.evaluation.report_url,
        output_url=summary.output_url,
    )


def draw_sheet(output_url: str, classes: Classes, num_images: int = SHEET_IMAGES) -> np.ndarray:
    """Segmented images with their masks and overlays, uint8 ``H x W x 3``, spread over all keys.

    Raises:
        StoreError: an image or a part cannot be read.
    """
    columns = ["key", "url", "status", "mask", "confidence"]
    rows = parts.read(output_url).to_table(columns=columns).to_pylist()
    rows = sorted((row for row in rows if row["status"] == "ok"), key=lambda row: row["key"])
    panels: list[list[Panel]] = []
    for index, row in enumerate(rows[:: max(1, len(rows) // num_images)][:num_images]):
        image = decode_image(stores.read_bytes(row["url"])).pixels
        label = decode_mask(row["mask"]["bytes"])
        caption = f"confidence {row['confidence']:.2f}"
        if index % 2 == 0:
            panels.append([])
        panels[-1] += [
            Panel(image=image, caption=row["key"]),
            Panel(image=colourise(label, classes), caption="mask"),
            Panel(image=overlay(image, label, classes), caption=caption),
        ]
    return contact_sheet(panels, classes=classes, title="Painted scenes and their masks")
