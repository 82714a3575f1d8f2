"""The training loss: per-pixel cross-entropy over the pixels that have a class."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fcn.classes import IGNORE_INDEX


def pixel_cross_entropy(
    scores: Tensor,
    labels: Tensor,
    *,
    ignore_index: int = IGNORE_INDEX,
    class_weights: Tensor | None = None,
    total: float | None = None,
) -> Tensor:
    """Mean cross-entropy over the pixels whose label is not ``ignore_index``.

    With class weights, the mean is weighted by the weight of each pixel's class. A batch of
    ignored pixels only has loss 0 and gradient 0.

    The losses of several batches, each divided by the `total_weight` of all of them, add up
    to the loss of one large batch.

    Args:
        scores: ``N x C x H x W``; taken to float32, where half precision would overflow.
        labels: ``N x H x W`` integers, classes 0..C-1 or ``ignore_index``.
        ignore_index: Label of the pixels left out.
        class_weights: C floats.
        total: What the sum over the pixels is divided by; None is `total_weight` of ``labels``.
    """
    if total is None:
        total = total_weight(labels, ignore_index, class_weights)
    # Summed here: on a GPU, cross_entropy's own sum adds in an order that varies.
    losses = functional.cross_entropy(
        scores.float(),
        labels.long(),
        weight=class_weights,
        ignore_index=ignore_index,
        reduction="none",
    )
    return losses.sum() / max(total, torch.finfo(torch.float32).tiny)


def total_weight(
    labels: Tensor, ignore_index: int = IGNORE_INDEX, class_weights: Tensor | None = None
) -> float:
    """How many pixels a mean over ``labels`` runs over; with class weights, their weights' sum.

    Args:
        labels: Integers of any shape, classes 0..C-1 or ``ignore_index``.
        ignore_index: Label of the pixels left out.
        class_weights: C floats.
    """
    counted = labels[labels != ignore_index]
    if class_weights is None:
        return float(counted.numel())
    return float(class_weights[counted.long()].sum())


def median_frequency_weights(class_pixels: Sequence[int]) -> Tensor:
    """One weight a class: the median of the class shares over the class's own share.

    Classes without a pixel weigh 0 and stay out of the median. Source: Eigen and Fergus (ICCV
    2015, section 6.3.2), as SegNet uses it on CamVid, with the share taken over the whole
    split.

    Raises:
        ValueError: No class has a pixel.
    """
    pixels = torch.tensor(class_pixels, dtype=torch.float64)
    present = pixels > 0
    if not present.any():
        raise ValueError("no class has a labelled pixel; class weights need at least one")
    median = torch.quantile(pixels[present], 0.5)
    return torch.where(present, median / pixels.clamp(min=1), 0).float()
