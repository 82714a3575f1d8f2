"""The winning class of every pixel and its probability, read off score maps in plain torch.

For GPUs without a fused kernel; `fcn.fused_cpu` and `fcn.fused` do this beside the upsampling.
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
    best, labels = scores.max(dim=1)
    if scores.shape[1] <= 256:
        labels = labels.byte()  # before it leaves the device
    inverse = scores.sub_(best[:, None]).mul_(_LOG2_E).exp2_().sum(dim=1)
    return labels, inverse.reciprocal_().sum(dim=(1, 2), dtype=torch.float64)
