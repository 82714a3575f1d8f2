"""How an image's bytes become what a network was trained on. Inputs belong to the weights.

An image may have *bands* beside its colours (`fcn.bands`). They follow red, green and blue, and
keep their places whatever the order of the colours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fcn.bands import Band, known, stacked_dtype

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Channel order and normalisation of the colours, in units of 0..255, and the bands.

    Attributes:
        channel_order: The order in which the network sees the colours.
        mean: Subtracted from each colour, in that order.
        std: Divides each colour afterwards.
        bands: What the network sees behind the colours, with what they are normalised by.

    Raises:
        ValueError: an order that is neither RGB nor BGR, means or deviations that are not three
            finite numbers, a deviation that is not above 0, or a band that is there twice.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # on model cards (`fcn.checkpoint`)

    channel_order: Literal["RGB", "BGR"]
    mean: Triple
    std: Triple

    bands: tuple[Band, ...] = ()

    _TAKEN: ClassVar = ("uint8", "uint16", "float32")  # what numpy stacks a band of 16 bits to

    def __post_init__(self) -> None:
        if self.channel_order not in ("RGB", "BGR"):
            raise ValueError(f"channel_order must be 'RGB' or 'BGR', found {self.channel_order!r}")
        finite = np.isfinite([*self.mean, *self.std]).all()
        if not (len(self.mean) == len(self.std) == 3 and finite and min(self.std) > 0):
            raise ValueError(
                "mean must be three finite numbers and std three above 0, "
                f"found {self.mean} and {self.std}"
            )
        names = [band.name for band in self.bands]
        if len(set(names)) < len(names):
            raise ValueError(f"a band is there twice: {', '.join(names)}")

    @property
    def num_channels(self) -> int:
        """Channels of what the network sees."""
        return 3 + len(self.bands)

    @property
    def means(self) -> tuple[float, ...]:
        """What is subtracted from each channel, bands behind colours."""
        return (*self.mean, *(band.mean for band in self.bands))

    @property
    def stds(self) -> tuple[float, ...]:
        """What divides each channel afterwards."""
        return (*self.std, *(band.std for band in self.bands))

    @property
    def channels(self) -> list[int]:
        """Where the network's channels stand in an image: colours as RGB, then the bands."""
        colours = [0, 1, 2] if self.channel_order == "RGB" else [2, 1, 0]
        return [*colours, *range(3, self.num_channels)]

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of images: uint8, or float32 where a band holds more than that."""
        return np.dtype(stacked_dtype(self.bands))

    def check_images(self, images: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        """Images as the network takes them: ``H x W x (3 + B)`` of `dtype`.

        What is not known in a band becomes its mean.

        Raises:
            ValueError: an array that is no such image.
        """
        dtypes = {self.dtype, *(map(np.dtype, self._TAKEN) if self.dtype != np.uint8 else ())}
        for image in images:
            fits = image.ndim == 3 and image.shape[2] == self.num_channels
            if not fits or image.dtype not in dtypes:
                channels = "3" if not self.bands else f"{self.num_channels} (with {self._names})"
                raise ValueError(
                    f"an image must be {self.dtype} H x W x {channels}, "
                    f"found {image.dtype} {image.shape}"
                )
        return [known(image.astype(self.dtype, copy=False), self.bands) for image in images]

    @property
    def _names(self) -> str:
        return ", ".join(band.name for band in self.bands)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float ``N x (3 + B) x H x W`` from RGB uint8 or float ``N x (3 + B) x H x W``.

        What is not known in a band becomes 0, which is its mean.
        """
        if self.channel_order == "BGR":
            pixels = self._backwards(pixels, 1)
        mean = torch.tensor(self.means, device=pixels.device).view(1, -1, 1, 1)
        std = torch.tensor(self.stds, device=pixels.device).view(1, -1, 1, 1)
        normalised = (pixels.float() - mean) / std
        if self.bands and pixels.is_floating_point():
            return torch.where(torch.isfinite(pixels), normalised, 0.0)
        return normalised

    def _backwards(self, pixels: Tensor, dim: int) -> Tensor:
        """The colours along a dimension in reverse, the bands where they were."""
        if not self.bands:
            return pixels.flip(dim)
        colours, bands = pixels.narrow(dim, 0, 3), pixels.narrow(dim, 3, len(self.bands))
        return torch.cat([colours.flip(dim), bands], dim)

    def normalise_interleaved(self, pixels: Tensor) -> Tensor:
        """`normalise` of ``N x H x W x (3 + B)``, the channels last in memory, too.

        No value may be unknown; see `check_images`. The values are the same to the bit. A CPU
        takes whole rows at a time here, and would take three numbers at a time there.
        """
        if self.channel_order == "BGR":
            pixels = self._backwards(pixels, 3)
        num, height, width, channels = pixels.shape
        mean = torch.tensor(self.means, device=pixels.device).repeat(width)
        std = torch.tensor(self.stds, device=pixels.device).repeat(width)
        rows = pixels.reshape(num, height, width * channels).to(torch.float32, copy=True)
        return rows.sub_(mean).div_(std).view(pixels.shape).permute(0, 3, 1, 2)


TORCHVISION = InputSpec(
    channel_order="RGB", mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
)
"""Input of torchvision's ImageNet weights: its means and deviations of 0..1, times 255."""

CAFFE = InputSpec(channel_order="BGR", mean=(104.0, 117.0, 123.0), std=(1.0, 1.0, 1.0))
"""Input of Caffe's ImageNet classifiers: means of ILSVRC 2012, in whole numbers.

SqueezeNet's is this very one; CaffeNet's mean image and VGG16's (103.939, 116.779, 123.68) are
within a quarter of it."""

RELEASE = InputSpec(
    channel_order="BGR", mean=(104.00699, 116.66877, 122.67892), std=(1.0, 1.0, 1.0)
)
"""Input of the authors' released networks on PASCAL VOC."""

NYUD_COLOR_HHA = InputSpec(
    channel_order="BGR",
    mean=(116.190, 97.203, 92.318),
    std=(1.0, 1.0, 1.0),
    bands=(
        Band("hha1", "uint8", 132.431, 1.0),
        Band("hha2", "uint8", 94.076, 1.0),
        Band("hha3", "uint8", 118.477, 1.0),
    ),
)
"""Input of the authors' ``nyud-fcn32s-color-hha``; means by their ``nyud_layers.py``.

The bands are the channels of an HHA image's file, in its order: horizontal disparity, height above
ground, angle to gravity (Gupta et al., ECCV 2014; ``saveHHA.m``)."""
