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


class JointLoss:
    """The loss of a network: the sum of the losses of its heads, one or several.

    Each is a mean over the head's own labelled pixels, so that a head weighs the same however
    much of the images is labelled for it. A head without a labelled pixel adds nothing.

    Args:
        num_classes: Of each head, in the order of the scores' channels.
        ignore_index: Label of the pixels left out.
        class_weights: A float a channel; None weighs all alike.
    """

    def __init__(
        self, num_classes: Sequence[int], ignore_index: int, class_weights: Tensor | None = None
    ) -> None:
        self.num_classes = list(num_classes)
        self.ignore_index = ignore_index
        self.class_weights: Sequence[Tensor | None] = [None] * len(num_classes)
        if class_weights is not None:
            self.class_weights = torch.split(class_weights, self.num_classes)

    def totals(self, labels: Tensor) -> Tensor:
        """The `total_weight` of each head, float64, of labels as in `__call__`."""
        return torch.tensor(
            [
                total_weight(label, self.ignore_index, weights)
                for label, weights in zip(_by_head(labels), self.class_weights, strict=True)
            ],
            dtype=torch.float64,
        )

    def __call__(self, scores: Tensor, labels: Tensor, totals: Tensor) -> Tensor:
        """The part of a batch in the loss of a step.

        Args:
            scores: ``N x C x H x W``, one head's classes after another's.
            labels: Integers ``N x H x W`` of one head, ``N x K x H x W`` of K heads.
            totals: `totals` of all batches of the step, added up.
        """
        heads = zip(
            torch.split(scores, self.num_classes, dim=1),
            _by_head(labels),
            self.class_weights,
            totals.tolist(),
            strict=True,
        )
        losses = [
            pixel_cross_entropy(
                part, label, ignore_index=self.ignore_index, class_weights=weights, total=total
            )
            for part, label, weights, total in heads
        ]
        return torch.stack(losses).sum()


def _by_head(labels: Tensor) -> Sequence[Tensor]:
    """Label maps ``N x H x W`` of each head."""
    return labels.unbind(dim=1) if labels.ndim == 4 else [labels]


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
