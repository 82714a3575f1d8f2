"""How an image's bytes become what a network was trained on. Inputs belong to the weights."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

Triple = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """Channel order and normalisation, in units of 0..255.

    Attributes:
        channel_order: The order in which the network sees the channels.
        mean: Subtracted from each channel, in that order.
        std: Divides each channel afterwards.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # on model cards (`fcn.checkpoint`)

    channel_order: Literal["RGB", "BGR"]
    mean: Triple
    std: Triple

    def normalise(self, pixels: Tensor) -> Tensor:
        """Float ``N x 3 x H x W`` from RGB uint8 ``N x 3 x H x W``."""
        if self.channel_order == "BGR":
            pixels = pixels.flip(1)
        mean = torch.tensor(self.mean, device=pixels.device).view(1, 3, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(1, 3, 1, 1)
        return (pixels.float() - mean) / std

    def normalise_interleaved(self, pixels: Tensor) -> Tensor:
        """`normalise` of uint8 ``N x H x W x 3``, the channels last in memory, too.

        The values are the same to the bit. A CPU takes whole rows at a time here, and would
        take three numbers at a time there.
        """
        if self.channel_order == "BGR":
            pixels = pixels.flip(3)
        num, height, width, channels = pixels.shape
        mean = torch.tensor(self.mean, device=pixels.device).repeat(width)
        std = torch.tensor(self.std, device=pixels.device).repeat(width)
        rows = pixels.reshape(num, height, width * channels).float()
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
