"""Masks as sources have them, and how they become label maps of class ids."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from fcn.classes import IGNORE_INDEX, Classes, Colour, voc_palette
from fcn.images import MAX_PIXELS, decode_image
from fcn.masks import decode_mask
from fcn.pillow import opened
from tasks.dataset import DatasetError

COLOUR = 1 << 24
"""Added to packed colours by `read_mask`, so that no gray value is taken for a colour."""

MAX_CLASSES = IGNORE_INDEX
"""Ids of one byte, less the one that means "ignored"."""

_UNKNOWN = 256
_VOID_NAMES = {"void", "ignore", "ignored", "unlabelled", "unlabeled"}
_VOC_VOID = (224, 224, 192)  # the colour of index 255 in the PASCAL VOC colour map


def read_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[np.int32]:
    """The values of a mask file, H x W int32.

    A palette or gray file gives its indices or gray values; a coloured one its colours as
    `packed`.

    Raises:
        ImageError: bytes that are no image, damaged, or with more than ``max_pixels``.
        LabelError: an image that keeps no values, such as a gray JPEG.
    """
    with opened(data, max_pixels) as image:
        coloured = image.mode in {"RGB", "RGBA"}
    if not coloured:
        return decode_mask(data, max_pixels=max_pixels).astype(np.int32)
    rgb = decode_image(data, max_pixels=max_pixels).pixels.astype(np.int32)
    return COLOUR + (rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2])


def packed(colour: Colour) -> int:
    """A colour as `read_mask` gives it."""
    red, green, blue = colour
    return COLOUR + (red << 16 | green << 8 | blue)


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """A class as a list or a file gives it: its value in gray and palette masks, its colour."""

    name: str
    value: int | None = None
    colour: Colour | None = None


@dataclass(frozen=True)
class ClassTable:
    """Classes, and the id of every mask value and colour; ``origin`` says who named them.

    ``further`` are the tables of further heads, by name.
    """

    classes: Classes
    ids: Mapping[int, int]
    origin: str
    further: Mapping[str, "ClassTable"] = field(default_factory=dict)

    def to_label(self, mask: NDArray[np.int32]) -> tuple[NDArray[np.uint8], dict[int, int]]:
        """The label map of a mask, and the mask's unknown values with their pixels.

        Args:
            mask: H x W, from `read_mask`.

        Returns:
            Class ids and 255 for ignored and unknown pixels, H x W uint8; pixels by value.
        """
        coloured = mask.size > 0 and mask.flat[0] >= COLOUR
        lookup = self._colour_ids if coloured else self._value_ids
        found = lookup[mask - COLOUR if coloured else np.clip(mask, 0, len(lookup) - 1)]
        unknown = found == _UNKNOWN
        values, counts = np.unique(mask[unknown], return_counts=True)
        label = np.where(unknown, IGNORE_INDEX, found).astype(np.uint8)
        return label, dict(zip(values.tolist(), counts.tolist(), strict=True))

    @property
    def known(self) -> str:
        """The values of the classes, for people: ``0..10``."""
        values = [v for v, i in self.ids.items() if v < COLOUR and i != IGNORE_INDEX]
        if values == list(range(values[0], values[0] + len(values))):
            return f"{values[0]}..{values[-1]}"
        return ", ".join(map(str, values))

    @cached_property
    def _value_ids(self) -> NDArray[np.int16]:
        return self._lookup(1 << 17, 0)  # 16-bit values, and room for those above

    @cached_property
    def _colour_ids(self) -> NDArray[np.int16]:
        return self._lookup(COLOUR, COLOUR)

    def _lookup(self, size: int, start: int) -> NDArray[np.int16]:
        table = np.full(size, _UNKNOWN, np.int16)
        for value, class_id in self.ids.items():
            if start <= value < start + size:
                table[value - start] = class_id
        return table


def make_table(rows: Sequence[ClassRow], ignore_values: Sequence[int], origin: str) -> ClassTable:
    """The table of classes given by rows, in the order of their ids.

    Rows without a value have the values 0, 1, 2, … in order, passing over ``ignore_values``.
    A row named void, ignore or unlabelled is no class: its value and colour are ignored. So
    are ``ignore_values``, and 255 unless a row has it. Rows without a colour get the one of
    their id in the PASCAL VOC colour map.

    Raises:
        DatasetError: no class, too many, or a name, value or colour twice.
    """
    values = _row_values(rows, ignore_values, origin)
    named = [(row, v) for row, v in zip(rows, values, strict=True) if not _is_void(row)]
    if not 1 <= len(named) <= MAX_CLASSES:
        raise DatasetError(f"{origin}: {len(named)} classes; expected 1 to {MAX_CLASSES}")
    defaults = voc_palette(len(named))
    palette = tuple(row.colour or colour for (row, _), colour in zip(named, defaults, strict=True))
    try:
        classes = Classes(tuple(row.name for row, _ in named), palette)
    except ValueError as error:
        raise DatasetError(f"{origin}: {error}") from error
    ids = {value: class_id for class_id, (_, value) in enumerate(named)}
    ids |= {packed(colour): class_id for class_id, colour in enumerate(palette)}
    if len(ids) < 2 * len(named):
        raise DatasetError(f"{origin}: two classes have the same value or the same colour")
    void = [(row, value) for row, value in zip(rows, values, strict=True) if _is_void(row)]
    ignored = {IGNORE_INDEX, packed(_VOC_VOID), *ignore_values, *(value for _, value in void)}
    ignored |= {packed(row.colour) for row, _ in void if row.colour}
    return ClassTable(classes, dict.fromkeys(sorted(ignored), IGNORE_INDEX) | ids, origin)


def _row_values(
    rows: Sequence[ClassRow], ignore_values: Sequence[int], origin: str
) -> Sequence[int]:
    given = [row.value for row in rows if row.value is not None]
    if given and len(given) < len(rows):
        raise DatasetError(
            f"{origin}: {len(given)} of {len(rows)} classes have a value; expected all"
        )
    if both := sorted(set(given) & set(ignore_values)):
        raise DatasetError(f"{origin}: {both} are values of classes, and in ignore_values")
    free = (value for value in range(1 << 16) if value not in ignore_values)
    return given or list(itertools.islice(free, len(rows)))


def _is_void(row: ClassRow) -> bool:
    return row.name.lower() in _VOID_NAMES
