"""Painting with numpy: a canvas that knows the class of every spot, and smooth noise.

The canvas is finer than the picture it becomes. A pixel of the picture is the mean of its
spots; where the spots of one pixel belong to different classes, its label is
`fcn.classes.IGNORE_INDEX`, as on the outlines of PASCAL VOC.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from fcn.classes import IGNORE_INDEX

SPOTS = 2
"""Spots per pixel, each way."""

Rgb = tuple[float, float, float]
Point = tuple[float, float]
Array = np.ndarray


@dataclass(frozen=True)
class Canvas:
    """A picture under way: colours, and the class of every spot.

    Attributes:
        pixels: float32 ``h x w x 3``, 0 to 255.
        label: uint8 ``h x w``, class ids.
        y: float32 ``h x w``, how far down each spot lies.
        x: float32 ``h x w``, how far right each spot lies.
        unit: spots that stand for one two-hundredth of the picture's height.
    """

    pixels: Array
    label: Array
    y: Array
    x: Array
    unit: float

    @classmethod
    def blank(cls, height: int, width: int) -> "Canvas":
        """A canvas for a picture of ``height`` by ``width`` pixels."""
        h, w = height * SPOTS, width * SPOTS
        y, x = np.mgrid[:h, :w].astype(np.float32)
        label = np.full((h, w), IGNORE_INDEX, np.uint8)
        return cls(np.zeros((h, w, 3), np.float32), label, y, x, h / 200)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in spots."""
        height, width = self.label.shape
        return height, width

    def window(self, left: float, top: float, right: float, bottom: float) -> "Canvas":
        """A part of the canvas, for painting small things fast; what is painted there stays."""
        rows = slice(max(0, int(top)), max(1, int(bottom) + 1))
        columns = slice(max(0, int(left)), max(1, int(right) + 1))
        at = rows, columns
        return Canvas(self.pixels[at], self.label[at], self.y[at], self.x[at], self.unit)

    def paint(self, where: Array, colour: Array | Rgb, class_id: int) -> None:
        """Cover ``where`` (bool ``h x w``) with a colour, or with the colours of a picture."""
        np.copyto(self.pixels, rgb(colour), where=where[..., None])
        self.label[where] = class_id

    def tint(self, where: Array, colour: Rgb, strength: Array | float = 1.0) -> None:
        """Mix a colour into ``where`` and leave the classes as they are."""
        share = np.broadcast_to(np.float32(strength), self.label.shape)[where]
        self.pixels[where] = mix(self.pixels[where], colour, share)

    def polygon(self, corners: Iterable[Point]) -> Array:
        """The spots inside a polygon, bool ``h x w``."""
        left, top = self.x[0, 0], self.y[0, 0]
        picture = Image.new("1", self.shape[::-1])
        inside = [(float(x - left), float(y - top)) for x, y in corners]
        ImageDraw.Draw(picture).polygon(inside, fill=1)
        return np.array(picture, bool)

    def discs(self, discs: Iterable[tuple[float, float, float]]) -> Array:
        """The spots inside any of the discs ``(x, y, radius)``, bool ``h x w``."""
        left, top = self.x[0, 0], self.y[0, 0]
        picture = Image.new("1", self.shape[::-1])
        draw = ImageDraw.Draw(picture)
        for x, y, radius in discs:
            across, down = float(x - left), float(y - top)
            draw.ellipse((across - radius, down - radius, across + radius, down + radius), fill=1)
        return np.array(picture, bool)

    def picture(self) -> tuple[Array, Array]:
        """Image uint8 ``H x W x 3`` and label map uint8 ``H x W``."""
        height, width = self.shape
        shape = (height // SPOTS, SPOTS, width // SPOTS, SPOTS)
        steps = [(row, column) for row in range(SPOTS) for column in range(SPOTS)]
        image = sum(self.pixels[row::SPOTS, column::SPOTS] for row, column in steps) / SPOTS**2
        spots = self.label.reshape(shape).transpose(0, 2, 1, 3).reshape(shape[0], shape[2], -1)
        agreed = (spots == spots[:, :, :1]).all(axis=2)
        label = np.where(agreed, spots[:, :, 0], IGNORE_INDEX).astype(np.uint8)
        return np.clip(np.rint(image), 0, 255).astype(np.uint8), label


def noise(
    rng: np.random.Generator, canvas: Canvas, size: float, *, octaves: int = 4, stretch: float = 1.0
) -> Array:
    """Smooth noise from 0 to 1, float32 ``h x w``: what clouds, rock and leaves are made of.

    Args:
        rng: Source of chance.
        canvas: Gives the height and width.
        size: Of the largest lumps, in spots.
        octaves: Each adds lumps of half the size and half the strength.
        stretch: How much wider than high the lumps are.
    """
    height, width = canvas.shape
    total = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        lump = max(1.0, size / 2**octave)
        rows = int(np.ceil(height / lump)) + 2
        columns = int(np.ceil(width / (lump * stretch))) + 2
        grid = Image.fromarray(rng.random((rows, columns), dtype=np.float32))
        box = (0.5, 0.5, 0.5 + width / (lump * stretch), 0.5 + height / lump)
        smooth = np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC, box=box))
        total += (smooth - 0.5) / 2**octave
    spread = 5 * float(total.std()) or 1.0
    return np.asarray(np.clip(0.5 + (total - total.mean()) / spread, 0, 1))


def rgb(colour: Array | Sequence[float]) -> Array:
    """A colour as float32, fit for arithmetic."""
    return np.asarray(colour, np.float32)


def mix(first: Array | Rgb, second: Array | Rgb, share: Array | float) -> Array:
    """Colours between two colours; ``share`` 0 gives the first, 1 the second."""
    weight = np.asarray(share, np.float32)[..., None]
    start, end = rgb(first), rgb(second)
    return np.asarray(start + (end - start) * weight)


def smoothstep(low: float, high: float, value: Array) -> Array:
    """0 below ``low``, 1 above ``high``, and a smooth rise between."""
    share = np.clip((value - low) / (high - low), 0, 1)
    return np.asarray(share * share * (3 - 2 * share))
