"""Joint augmentation of an image and its label map.

Bands (`fcn.bands`) behind the colours of an image are moved with it; their values are left alone.
"""

from importlib import import_module
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torchvision.transforms import InterpolationMode

SCALES = (0.5, 2.0)
"""Range of the random scale, as the usual recipes for segmentation take it."""

JITTER = 0.3
"""Brightness, contrast and saturation vary by up to this share."""


def _kernels() -> Any:
    """Torchvision's functions, imported at the first use: torch's compiler comes with them.

    That is a third of the processor time that a flow takes to start, and few train.
    """
    return import_module("torchvision.transforms.v2.functional")


class Augment:
    """Scale, flip, colour and crop an image together with its label map.

    Args:
        crop_size: Height and width of the crop; what lies outside a smaller image is 0 in its
            colours, unknown in its bands and ``ignore_index`` in the label map. None keeps the
            whole image at its scale.
        ignore_index: Label of padded pixels.
        vary: Apply the random scale, flip and colours; without it only the crop is random.
    """

    def __init__(self, crop_size: tuple[int, int] | None, ignore_index: int, *, vary: bool) -> None:
        self.crop_size = crop_size
        self.ignore_index = ignore_index
        self.vary = vary

    def __call__(self, image: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
        """A varied pair; every random number comes from ``generator``.

        Args:
            image: Uint8 ``3 x H x W``, or float32 with bands behind the colours.
            label: Integers ``H x W``, or ``K x H x W`` of several heads.
            generator: Source of the random numbers.
        """
        is_image = torch.ones(image.shape[-2:], dtype=torch.bool)
        if self.crop_size:
            image, label, is_image = self._crop(image, label, self.crop_size, generator)
        if self.vary:
            if _uniform(0, 1, generator) < 0.5:
                image, label, is_image = image.flip(-1), label.flip(-1), is_image.flip(-1)
            colours = _vary_colours(image[:3].to(torch.uint8), generator)
            colours *= is_image  # another contrast turns the padding's black into grey
            image = colours if len(image) == 3 else torch.cat([colours, image[3:]])
        return image, label

    def _crop(
        self, image: Tensor, label: Tensor, size: tuple[int, int], generator: Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cut the window first and resize only that: pixels outside it are never computed.

        Returns:
            The crop, its label map, and where it is no padding, ``H x W``.
        """
        scale = _uniform(*SCALES, generator) if self.vary else 1.0
        sides = list(image.shape[-2:])
        window = [min(s, max(1, round(n / scale))) for s, n in zip(sides, size, strict=True)]
        top, left = (
            int(torch.randint(side - cut + 1, (), generator=generator))
            for side, cut in zip(sides, window, strict=True)
        )
        image = _kernels().crop(image, top, left, *window)
        maps = label if label.ndim == 3 else label[None]
        maps = _kernels().crop(maps, top, left, *window)
        target = [min(n, max(1, round(w * scale))) for w, n in zip(window, size, strict=True)]
        if target != window:
            image = _resized(image, target)
            maps = _kernels().resize(maps, target, InterpolationMode.NEAREST_EXACT)
        padding = [0, 0, size[1] - target[1], size[0] - target[0]]
        image = pad(image, (0, padding[2], 0, padding[3]))
        maps = _kernels().pad(maps, padding, fill=self.ignore_index)
        is_image = _kernels().pad(torch.ones(1, *target, dtype=torch.bool), padding)[0]
        return image, maps if label.ndim == 3 else maps[0], is_image


def pad(image: Tensor, sides: tuple[int, int, int, int]) -> Tensor:
    """Images ``C x H x W``, or several, with more pixels left, right, above and below.

    Colours are 0 there, bands NaN.
    """
    colours = nn.functional.pad(image[..., :3, :, :], sides)
    if image.shape[-3] == 3:
        return colours
    bands = nn.functional.pad(image[..., 3:, :, :].float(), sides, value=torch.nan)
    return torch.cat([colours, bands], dim=-3)


def _resized(image: Tensor, size: list[int]) -> Tensor:
    """Colours in whole numbers, as without bands."""
    if len(image) == 3:
        resized: Tensor = _kernels().resize(image, size, antialias=True)
        return resized
    colours = _kernels().resize(image[:3].to(torch.uint8), size, antialias=True)
    return torch.cat([colours, _kernels().resize(image[3:], size, antialias=True)])


def _vary_colours(image: Tensor, generator: Generator) -> Tensor:
    for adjust in (
        _kernels().adjust_brightness,
        _kernels().adjust_contrast,
        _kernels().adjust_saturation,
    ):
        image = adjust(image, _uniform(1 - JITTER, 1 + JITTER, generator))
    return image


def _uniform(low: float, high: float, generator: Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))
