"""What to label next: the least confident images of a run, and classes whose share has moved."""

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import pyarrow.compute as pc
import pyarrow.parquet as pq

from fcn.classes import Classes
from tasks import parts, stores
from tasks.part_file import Part, Row

NUM_IMAGES = 10
"""Least confident images that a run tells of."""


@dataclass(frozen=True, kw_only=True, order=True)
class WeakSpot:
    """An image that the model is not sure about.

    Attributes:
        confidence: mean over the pixels of the winning class's probability.
        key: of the image.
        class_pixels: pixels of each class, by id.
    """

    confidence: float
    key: str
    class_pixels: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class ClassShare:
    """How much of a run a class covers.

    Attributes:
        name: of the class.
        pixels: over all images of the run.
        share: of all pixels of the run.
        before: the same share in the run before; ``None`` where there is none to compare with.
    """

    name: str
    pixels: int
    share: float
    before: float | None

    @property
    def drift(self) -> float | None:
        """How far the share has moved, from -1 to 1."""
        return None if self.before is None else self.share - self.before


def weakest(spots: Iterable[WeakSpot], count: int = NUM_IMAGES) -> list[WeakSpot]:
    """The least confident ones, by confidence, then key."""
    return heapq.nsmallest(count, spots)


def weak_spots(rows: Iterable[Row]) -> list[WeakSpot]:
    """The least confident of these rows."""
    return weakest(
        WeakSpot(confidence=row.confidence, key=row.entry.key, class_pixels=tuple(row.class_pixels))
        for row in rows
        if row.confidence is not None and row.class_pixels is not None
    )


def weak_spots_of(output_url: str, part: Part) -> list[WeakSpot]:
    """The least confident rows of a part; masks are not read.

    Raises:
        StoreError: the part cannot be read.
    """
    with stores.open_input(parts.part_url(output_url, part.run, part.number)) as file:
        table = pq.read_table(file, columns=["confidence", "key", "class_pixels"])
    table = table.filter(pc.is_valid(table["confidence"]))
    order = pc.sort_indices(table, [("confidence", "ascending"), ("key", "ascending")])
    return [
        WeakSpot(**row | {"class_pixels": tuple(row["class_pixels"])})
        for row in table.take(order[:NUM_IMAGES]).to_pylist()
    ]


def class_shares(
    cards: Sequence[Part], before: Sequence[Part], classes: Classes, head: str = ""
) -> list[ClassShare]:
    """The share of each class in a run and in the one before, by id.

    Args:
        cards: Of the run's parts.
        before: Of the parts of a run with the same classes; none where there is no such run.
        classes: Their names.
        head: Name of a further head, if it is not the first.
    """
    now, then = (_pixels(found, len(classes), head) for found in (cards, before))
    return [
        ClassShare(
            name=name,
            pixels=pixels,
            share=pixels / max(1, sum(now)),
            before=earlier / sum(then) if sum(then) else None,
        )
        for name, pixels, earlier in zip(classes.names, now, then, strict=True)
    ]


def _pixels(cards: Sequence[Part], num_classes: int, head: str) -> list[int]:
    """Pixels of each class over parts; a part whose images all failed has none."""
    counted = [p.further_class_pixels.get(head, ()) if head else p.class_pixels for p in cards]
    return [sum(pixels) for pixels in zip(*filter(None, counted), strict=True)] or [0] * num_classes
