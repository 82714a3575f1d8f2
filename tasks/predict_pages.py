"""The Markdown page of a prediction: counts, failures, and pictures of typical images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow.parquet as pq

from fcn.classes import Classes
from fcn.draw import overlay
from fcn.images import decode_image
from fcn.masks import decode_mask
from tasks import parts, stores
from tasks.manifest import Manifest
from tasks.markdown import escape, image, table
from tasks.part_file import Part
from tasks.reading import read_objects
from tasks.shards import PredictSummary

NUM_EXAMPLES = 6
MAX_EXAMPLE_PIXELS = 20_000_000

_COLUMNS = ["key", "height", "width", "status", "confidence", "class_pixels"]


Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True, eq=False)
class Example:
    """An image with its mask laid over it, uint8 ``H x W x 3``, and what is seen."""

    picture: np.ndarray
    caption: str


def find_examples(manifest: Manifest, count: int = NUM_EXAMPLES) -> list[Example]:
    """Typical images of a run: those between its least and its most confident ones.

    They are looked for among the first rows of up to ``count`` parts, spread over the run.

    Raises:
        StoreError: a part or an image cannot be read.
        ImageError: an image was replaced since.
    """
    there = [
        part
        for part in parts.committed(manifest.output_url)
        if part.run == manifest.card.run and part.ok + part.partial
    ]
    rows = [
        row
        for part in _spread(there, count)
        for row in _first_rows(manifest, part)
        if row["status"] != "failed" and row["height"] * row["width"] <= MAX_EXAMPLE_PIXELS
    ]
    rows.sort(key=lambda row: row["confidence"])
    tenth = len(rows) // 10
    chosen = _spread(rows[tenth : len(rows) - tenth], count)
    classes = manifest.card.model.label_classes()
    found = read_objects([row["entry"] for row in chosen])
    return [
        _example(row, data, classes)
        for row, data in zip(chosen, found, strict=True)
        if isinstance(data, bytes)
    ]


def prediction_page(
    summary: PredictSummary, failures: Sequence[Mapping[str, Any]], examples: Sequence[Example]
) -> str:
    """What a prediction came to, for the run's page.

    Args:
        summary: Its figures.
        failures: The first failed images: key, error_class, error.
        examples: Pictures to show.
    """
    rate = summary.segmented / summary.seconds if summary.seconds else 0.0
    now = f"{summary.segmented:,} in {summary.seconds:.1f} s, {rate:.1f} images/s"
    gone = f" No longer in the collection: {summary.deleted:,} keys." if summary.deleted else ""
    lines = [
        f"# Prediction {escape(summary.output_url)}",
        f"Run {summary.run:05d}: {summary.rows:,} images. Segmented now: {now}.{gone}",
        table(["status", "images", "share"], [tuple(row.values()) for row in status_rows(summary)]),
        *_stage_lines(summary),
        "## Classes",
        table(["class", "pixels", "share", "run before", "drift"], _cells(class_rows(summary))),
    ]
    if summary.weak_spots:
        lines += [
            "## Least confident images, to be labelled next",
            table(["key", "confidence", "mostly"], _cells(weak_spot_rows(summary))),
        ]
    if summary.slow_images:
        lines += [
            "## Slowest images",
            table(["key", "seconds", "height x width", "status"], _slow_image_cells(summary)),
        ]
    if examples:
        pictures = [f"{image(e.picture, e.caption)} {escape(e.caption)}" for e in examples]
        lines += ["## Typical images", *pictures]
    if failures:
        shown = [(row["key"], row["error_class"], row["error"]) for row in failures]
        lines += [
            f"## Failed images, {len(failures):,} of {summary.failed:,}",
            table(["key", "error class", "error"], shown),
        ]
    return "\n\n".join(lines)


def status_rows(summary: PredictSummary) -> list[dict[str, object]]:
    """A row for each status, with its number of images and their share."""
    counts = {"ok": summary.ok, "partial": summary.partial, "failed": summary.failed}
    return [
        {"status": status, "images": f"{count:,}", "share": f"{100 * count / summary.rows:.2f} %"}
        for status, count in counts.items()
    ]


def class_rows(summary: PredictSummary) -> list[dict[str, object]]:
    """A row for each class: its share of the pixels, and how that has moved, largest move first.

    Classes of further heads follow, as ``head: class``.
    """
    heads = {"": summary.class_shares} | summary.further_class_shares
    return [
        {
            "class": f"{head}: {share.name}" if head else share.name,
            "pixels": f"{share.pixels:,}",
            "share": f"{100 * share.share:.2f} %",
            "run before": "–" if share.before is None else f"{100 * share.before:.2f} %",
            "drift": "–" if share.drift is None else f"{100 * share.drift:+.2f}",
        }
        for head, shares in heads.items()
        for share in sorted(shares, key=lambda share: -abs(share.drift or 0))
    ]


def weak_spot_rows(summary: PredictSummary) -> list[dict[str, object]]:
    """A row for each of the least confident images."""
    names = [share.name for share in summary.class_shares]
    return [
        {
            "key": spot.key,
            "confidence": f"{spot.confidence:.3f}",
            "mostly": names[max(range(len(names)), key=spot.class_pixels.__getitem__)],
        }
        for spot in summary.weak_spots
        if len(spot.class_pixels) == len(names)
    ]


def _stage_lines(summary: PredictSummary) -> list[str]:
    """Throughput by stage, where anything was done now."""
    if not summary.segmented:
        return []
    rows = [
        (stage, f"{seconds:.1f}", f"{summary.segmented / seconds:,.1f}" if seconds else "–")
        for stage, seconds in summary.stages.items()
    ]
    busy = 100 * summary.stages["network"] / summary.seconds
    return [
        table(["stage", "busy seconds", "images per busy second"], rows),
        f"The network was busy {busy:.0f} % of the time: so much of its bare rate the run has.",
    ]


def _slow_image_cells(summary: PredictSummary) -> list[tuple[object, ...]]:
    return [
        (
            image.key,
            f"{image.seconds:.2f}",
            "–" if image.height is None else f"{image.height:,} x {image.width:,}",
            image.status,
        )
        for image in summary.slow_images
    ]


def _cells(rows: Sequence[Mapping[str, object]]) -> list[tuple[object, ...]]:
    return [tuple(row.values()) for row in rows]


def _first_rows(manifest: Manifest, part: Part) -> list[dict[str, Any]]:
    """The rows of a part's first row group, each with the image as the manifest has it.

    A mask in them is decoded only when it is shown.
    """
    with stores.open_input(parts.part_url(manifest.output_url, part.run, part.number)) as file:
        parquet = pq.ParquetFile(file)
        names = set(parquet.schema_arrow.names)
        columns = [name for name in (*_COLUMNS, "mask", "mask_rle") if name in names]
        rows = parquet.read_row_group(0, columns=columns).to_pylist()
    entries = manifest.shard(part.number)
    return [row | {"entry": entry} for row, entry in zip(rows, entries, strict=False)]


def _example(row: Mapping[str, Any], data: bytes, classes: Classes) -> Example:
    pixels = decode_image(data, lenient=row["status"] == "partial").pixels
    pixel_counts = row["class_pixels"]
    largest = sorted(range(len(pixel_counts)), key=pixel_counts.__getitem__, reverse=True)[:3]
    shares = ", ".join(
        f"{classes.names[index]} {100 * pixel_counts[index] / sum(pixel_counts):.0f} %"
        for index in largest
        if pixel_counts[index]
    )
    return Example(
        picture=overlay(pixels, decode_mask(parts.stored_mask(row)), classes),
        caption=f"{row['key']}: {shares}; confidence {row['confidence']:.2f}",
    )


def _spread(rows: Sequence[Item], count: int) -> list[Item]:
    """Up to ``count`` of the rows, evenly spread."""
    step = max(1.0, len(rows) / count)
    return [rows[int(index * step)] for index in range(min(count, len(rows)))]
