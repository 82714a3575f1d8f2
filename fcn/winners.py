"""The winning class of every pixel and its probability, read off score maps.

A CPU has no fast kernel for the place of the largest score: torch's takes as long as the exp of
all of them. The greatest difference to the best score is zero, its bits are those of the integer
zero, and the bits of everything below are a large negative integer. So the place is found as the
largest of sums of integers, which the processor takes sixteen at a time.
"""

import math

import torch
from torch import Tensor

_LOG2_E = math.log2(math.e)


def winners(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Winning classes, and per image the sum of their probabilities; overwrites the scores.

    Of equal scores the first class wins.

    Args:
        scores: float32 ``N x C x H x W``.

    Returns:
        Integers ``N x H x W``, uint8 up to 256 classes, and float64 ``N``.
    """
    if scores.device.type == "cpu":
        minus_best = scores.amax(dim=1).neg_().add_(0)  # without -0: -0 + -0 is not 0
        below = scores.add_(minus_best[:, None])
        labels = _first_zero(below)
    else:
        best, labels = scores.max(dim=1)
        below = scores.sub_(best[:, None])
    if scores.shape[1] <= 256:
        labels = labels.byte()  # before it leaves the device
    inverse = below.mul_(_LOG2_E).exp2_().sum(dim=1)  # three times as fast as exp on a CPU
    return labels, inverse.reciprocal_().sum(dim=(1, 2), dtype=torch.float64)


def _first_zero(below: Tensor) -> Tensor:
    """The first class at which differences ``N x C x H x W``, none above zero, are zero."""
    last = below.shape[1] - 1
    from_last = torch.arange(last, -1, -1, dtype=torch.int32)[:, None, None]
    return (below.view(torch.int32) + from_last).amax(dim=1).neg_().add_(last)
