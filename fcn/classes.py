"""The classes of a label map: names, colours, and the value that means "no class"."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Colour = tuple[int, int, int]

IGNORE_INDEX = 255
"""Label of pixels that belong to no class; PASCAL VOC's "void"."""


def voc_palette(num_colours: int) -> tuple[Colour, ...]:
    """The first ``num_colours`` colours of the PASCAL VOC colour map, RGB.

    Source: ``VOClabelcolormap`` of the VOC development kit, which deals the bits of the
    index to the high bits of red, green and blue in turn. VOC has 256 of them; further ones
    follow from the same rule, no two alike.
    """
    return tuple(_voc_colour(index) for index in range(num_colours))


def _voc_colour(index: int) -> Colour:
    red = green = blue = 0
    for bit in range(7, -1, -1):
        red |= (index & 1) << bit
        green |= (index >> 1 & 1) << bit
        blue |= (index >> 2 & 1) << bit
        index >>= 3
    return red, green, blue


@dataclass(frozen=True)
class Classes:
    """Names and colours of the classes, by id: class ``i`` is ``names[i]`` in ``palette[i]``.

    Raises:
        ValueError: Names and palette of different length, a name twice, no class at all, a
            colour outside 0..255, or an `ignore_index` that is a class.
    """

    names: tuple[str, ...]
    palette: tuple[Colour, ...]
    ignore_index: int = IGNORE_INDEX

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("no classes given; at least one is needed")
        if len(self.names) != len(self.palette):
            raise ValueError(f"{len(self.names)} class names but {len(self.palette)} colours")
        wrong = [colour for colour in self.palette if not all(0 <= c <= 255 for c in colour)]
        if wrong:
            raise ValueError(f"colours are RGB in 0..255, found {wrong[0]}")
        if 0 <= self.ignore_index < len(self.names):
            raise ValueError(
                f"ignore_index {self.ignore_index} is a class; classes are 0..{len(self) - 1}"
            )
        if len(set(self.names)) != len(self.names):
            twice = sorted({name for name in self.names if self.names.count(name) > 1})
            raise ValueError(f"class names must be unique; given more than once: {twice}")

    @classmethod
    def named(cls, names: Iterable[str], ignore_index: int = IGNORE_INDEX) -> "Classes":
        """Classes of these names in the PASCAL VOC colours."""
        names = tuple(names)
        return cls(names, voc_palette(len(names)), ignore_index)

    @classmethod
    def from_json(
        cls, rows: Iterable[Mapping[str, Any]], ignore_index: int = IGNORE_INDEX
    ) -> "Classes":
        """The inverse of `to_json`.

        Raises:
            ValueError: Ids that are not 0, 1, 2, … in this order.
        """
        rows = list(rows)
        ids = [row["id"] for row in rows]
        if ids != list(range(len(rows))):
            raise ValueError(f"class ids must be 0..{len(rows) - 1} in order, found {ids}")
        palette = tuple((int(r), int(g), int(b)) for r, g, b in (row["colour"] for row in rows))
        return cls(tuple(str(row["name"]) for row in rows), palette, ignore_index)

    def to_json(self) -> list[dict[str, Any]]:
        """One object per class: ``id``, ``name``, ``colour`` (RGB)."""
        return [
            {"id": index, "name": name, "colour": list(colour)}
            for index, (name, colour) in enumerate(zip(self.names, self.palette, strict=True))
        ]

    def __len__(self) -> int:
        return len(self.names)
