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


UNKNOWN = Interval(low=float("nan"), high=float("nan"))


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
    if len(tallies) < 2:
        return Intervals(mean_iu=UNKNOWN, pixel_accuracy=UNKNOWN)
    draws = _drawn(tallies, num_draws, seed)
    right, true, _ = draws.transpose(1, 0, 2)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: every pixel, not drawn
        pixel_accuracy = right.sum(axis=1) / true.sum(axis=1)
    return Intervals(
        mean_iu=_percentile(_mean_iu(draws), level),
        pixel_accuracy=_percentile(pixel_accuracy, level),
    )


def paired_gain(
    tallies: NDArray[np.int64],
    rival: NDArray[np.int64],
    *,
    num_draws: int = NUM_DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """Percentile interval of how much higher a mean IU is than a rival's on the same images.

    Every draw takes the same images for both, so that what makes an image hard for either
    cancels out: the interval of the difference is narrower than those of the two would tell.

    Args:
        tallies: One `tally` per image, ``N x 3 x C``. With fewer than two images nothing is
            known.
        rival: Those of the rival, of the same images in the same order.
        num_draws: How often the images are drawn.
        level: Share of the draws within the interval.
        seed: The same seed gives the same interval.

    Raises:
        ValueError: tallies of different shapes.
    """
    if tallies.shape != rival.shape:
        raise ValueError(f"tallies of {tallies.shape} and {rival.shape} are not of the same images")
    if len(tallies) < 2:
        return UNKNOWN
    draws = _drawn(np.stack([tallies, rival], axis=1), num_draws, seed)
    return _percentile(_mean_iu(draws[:, 0]) - _mean_iu(draws[:, 1]), level)


def _drawn(tallies: NDArray[np.int64], num_draws: int, seed: int) -> NDArray[np.float64]:
    """Sums over the images of each draw, ``num_draws x ...``, of tallies ``N x ...``."""
    rng, num_images = np.random.default_rng(seed), len(tallies)
    flat = tallies.reshape(num_images, -1).astype(np.float64)  # exact up to 2^53 pixels
    draws = np.empty((num_draws, *tallies.shape[1:]))
    for draw in draws:
        times = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        draw[:] = (times @ flat).reshape(draw.shape)
    return draws


def _mean_iu(draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean IU of every draw, ``D``, of sums ``D x 3 x C``; nan where there is no class."""
    right, true, predicted = draws.transpose(1, 0, 2)
    union = true + predicted - right
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: a class that was not drawn
        return np.asarray(np.nansum(right / union, axis=1) / np.count_nonzero(union, axis=1))


def _percentile(scores: NDArray[np.float64], level: float) -> Interval:
    known = scores[~np.isnan(scores)]
    if not known.size:
        return UNKNOWN
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(low=float(low), high=float(high))
