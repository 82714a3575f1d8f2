"""A tiny labelled task: bright squares on dark ground, learnt in seconds."""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fcn.classes import Classes
from fcn.draw import png_bytes
from fcn.masks import encode_mask

CLASSES = Classes.named(("ground", "square"))


@dataclass(frozen=True)
class Pair:
    image: bytes
    label: bytes
    key: str = "pair"


@dataclass(frozen=True)
class ReadBy:
    """A square that leaves the number of each process that reads it in a folder."""

    pair: Pair
    folder: Path
    key: str = "pair"

    @property
    def image(self) -> bytes:
        (self.folder / str(os.getpid())).touch()
        return self.pair.image

    @property
    def label(self) -> bytes:
        return self.pair.label


def squares(count: int, size: tuple[int, int] = (40, 48), seed: int = 0) -> list[Pair]:
    """Pairs with one square each; the left column is ignored."""
    rng = np.random.default_rng(seed)
    return [square(rng, size) for _ in range(count)]


def square(rng: np.random.Generator, size: tuple[int, int]) -> Pair:
    height, width = size
    image = rng.integers(0, 60, (height, width, 3), np.uint8)
    label = np.zeros(size, np.uint8)
    top, left = rng.integers(0, height - 20), rng.integers(0, width - 20)
    image[top : top + 20, left : left + 20] += 180
    label[top : top + 20, left : left + 20] = 1
    label[:, 0] = 255
    return Pair(png_bytes(image), encode_mask(label, CLASSES.palette))
