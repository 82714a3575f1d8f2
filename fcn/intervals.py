"""How far a score may be off by the choice of the images: bootstrap intervals.

Source: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13, the
percentile interval. The images are drawn anew, with replacement, as many as there are; each
draw has its own scores, and the interval is what the middle of them spans. It tells nothing of
other trainings of the same network, and it is too narrow where images resemble each other, as
the frames of one video do.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

NUM_DRAWS = 1000
"""Draws for a percentile interval; Efron and Tibshirani (section 13.3) ask for this many."""

LEVEL = 0.95
"""Share of the draws within the interval."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """From where to where a score lies; nan if it is not known."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Intervals:
    """Intervals of the scores of a split.

    Attributes:
        mean_iu: Of `Scores.mean_iu`.
        pixel_accuracy: Of `Scores.pixel_accuracy`.
    """

    mean_iu: Interval
    pixel_accuracy: Interval


def tally(confusion: NDArray[np.int64]) -> NDArray[np.int64]:
    """What `bootstrap` needs of an image's confusion matrix: its right, true, predicted pixels.

    Returns:
        Pixels by class, ``3 x C``.
    """
    return np.stack([np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0)])


def bootstrap(
    tallies: NDArray[np.int64], *, num_draws: int = NUM_DRAWS, level: float = LEVEL, seed: int = 0
) -> Intervals:
    """Percentile intervals of mean IU and pixel accuracy, by drawing images anew.

    Args:
        tallies: One `tally` per image, ``N x 3 x C``. With fewer than two images nothing is
            known.
        num_draws: How often the images are drawn.
        level: Share of the draws within the interval.
        seed: The same seed gives the same intervals.
    """
    num_images = len(tallies)
    if num_images < 2:
        unknown = Interval(low=float("nan"), high=float("nan"))
        return Intervals(mean_iu=unknown, pixel_accuracy=unknown)
    rng = np.random.default_rng(seed)
    flat = tallies.reshape(num_images, -1).astype(np.float64)  # exact up to 2^53 pixels
    draws = np.empty((num_draws, *tallies.shape[1:]))
    for draw in draws:
        times = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        draw[:] = (times @ flat).reshape(draw.shape)
    right, true, predicted = draws.transpose(1, 0, 2)
    union = true + predicted - right
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: a class, or every pixel, not drawn
        mean_iu = np.nansum(right / union, axis=1) / np.count_nonzero(union, axis=1)
        pixel_accuracy = right.sum(axis=1) / true.sum(axis=1)
    return Intervals(
        mean_iu=_percentile(mean_iu, level), pixel_accuracy=_percentile(pixel_accuracy, level)
    )


def _percentile(scores: NDArray[np.float64], level: float) -> Interval:
    known = scores[~np.isnan(scores)]
    if not known.size:
        return Interval(low=float("nan"), high=float("nan"))
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))
