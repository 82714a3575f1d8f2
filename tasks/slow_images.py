"""Images that took longest: which to leave out, or to convert, where a run is too slow."""

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tasks.part_file import Row, Status

NUM_IMAGES = 10
"""Slowest images that a run tells of."""


@dataclass(frozen=True, kw_only=True)
class SlowImage:
    """An image and how long it took.

    Attributes:
        seconds: of decoding it and of the network, of whose batch it has an equal share.
        key: of the image.
        status: of its row.
        height: in pixels; ``None`` where its header could not be read.
        width: as ``height``.
    """

    seconds: float
    key: str
    status: Status
    height: int | None
    width: int | None


def slowest(images: Iterable[SlowImage]) -> list[SlowImage]:
    """The slowest ones, slowest first."""
    return heapq.nlargest(NUM_IMAGES, images, key=lambda image: image.seconds)


def slow_images(rows: Iterable[Row], seconds: Mapping[str, float]) -> list[SlowImage]:
    """The slowest of these rows.

    Args:
        rows: Of a shard.
        seconds: By key; an image whose bytes could not be had has none.
    """
    return slowest(
        SlowImage(
            seconds=seconds[row.entry.key],
            key=row.entry.key,
            status=row.status,
            height=row.height,
            width=row.width,
        )
        for row in rows
        if row.entry.key in seconds
    )
