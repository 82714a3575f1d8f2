"""Bootstrap intervals against a slow loop, and where the answer is known."""

import numpy as np
import pytest

from fcn.intervals import NUM_DRAWS, Interval, bootstrap, paired_gain, tally
from fcn.metrics import Scores


def matrices(rng: np.random.Generator, num_images: int) -> np.ndarray:
    """Confusion matrices of images that hold some of five classes."""
    present = rng.random((num_images, 5, 1)) < 0.6
    return rng.integers(0, 200, (num_images, 5, 5)) * present + 300 * np.eye(5, dtype=int) * present


def test_intervals_are_those_of_scores_of_images_drawn_anew(rng: np.random.Generator) -> None:
    images = matrices(rng, 12)
    found = bootstrap(np.stack([tally(matrix) for matrix in images]), seed=3)
    draws = np.random.default_rng(3)
    scores = [Scores(images[draws.integers(12, size=12)].sum(axis=0)) for _ in range(NUM_DRAWS)]
    for name in ("mean_iu", "pixel_accuracy"):
        low, high = np.quantile([getattr(drawn, name) for drawn in scores], [0.025, 0.975])
        assert getattr(found, name).low == pytest.approx(low)
        assert getattr(found, name).high == pytest.approx(high)


def test_the_same_seed_gives_the_same_intervals(rng: np.random.Generator) -> None:
    tallies = np.stack([tally(matrix) for matrix in matrices(rng, 9)])
    assert bootstrap(tallies, seed=1) == bootstrap(tallies, seed=1)
    assert bootstrap(tallies, seed=1) != bootstrap(tallies, seed=2)


def test_about_95_of_100_intervals_hold_the_score_of_all_images() -> None:
    """Splits of 60 images from a world of 20,000, pixel accuracies spread about 0.8."""
    rng = np.random.default_rng(0)
    right = rng.binomial(1000, np.clip(rng.normal(0.8, 0.1, 20_000), 0, 1))
    world = np.zeros((20_000, 3, 2), np.int64)
    world[:, 0, 0], world[:, 1, 0], world[:, 2, 0] = right, 1000, right
    world[:, 2, 1] = 1000 - right
    truth = right.sum() / 20_000_000
    held = 0
    for _ in range(200):
        found = bootstrap(world[rng.integers(20_000, size=60)], num_draws=400).pixel_accuracy
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 200 <= 0.98


def test_images_that_are_all_alike_leave_no_room(rng: np.random.Generator) -> None:
    (matrix,) = matrices(rng, 1)
    found = bootstrap(np.stack([tally(matrix)] * 5)).mean_iu
    assert found.low == pytest.approx(Scores(matrix).mean_iu)
    assert found.high == pytest.approx(found.low)


@pytest.mark.parametrize("num_images", [0, 1])
def test_nothing_is_known_of_fewer_than_two_images(num_images: int) -> None:
    found = bootstrap(np.ones((num_images, 3, 2), np.int64))
    assert np.isnan([found.mean_iu.low, found.mean_iu.high, found.pixel_accuracy.low]).all()


def test_draws_without_a_counted_pixel_are_left_out() -> None:
    tallies = np.zeros((2, 3, 2), np.int64)
    tallies[0] = [[3, 0], [4, 0], [3, 1]]  # the other image is ignored altogether
    found = bootstrap(tallies).pixel_accuracy
    assert (found.low, found.high) == (0.75, 0.75)
    assert np.isnan(bootstrap(tallies[[1, 1]]).mean_iu.low)


def test_a_gain_is_that_of_scores_of_the_same_images_drawn_anew(rng: np.random.Generator) -> None:
    ours, theirs = matrices(rng, 12), matrices(rng, 12)
    found = paired_gain(*(np.stack([tally(m) for m in model]) for model in (ours, theirs)), seed=3)
    draws, gains = np.random.default_rng(3), []
    for _ in range(NUM_DRAWS):
        drawn = draws.integers(12, size=12)
        scores = [Scores(model[drawn].sum(axis=0)).mean_iu for model in (ours, theirs)]
        gains.append(scores[0] - scores[1])
    low, high = np.quantile(gains, [0.025, 0.975])
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_a_small_gain_on_every_image_is_seen_although_the_scores_spread_wide() -> None:
    rng = np.random.default_rng(0)
    right = rng.integers(200, 900, 40)
    tallies = np.zeros((2, 40, 3, 1), np.int64)
    tallies[:, :, 1], tallies[:, :, 2] = 1000, 1000
    tallies[0, :, 0, 0], tallies[1, :, 0, 0] = right + 5, right
    gain, alone = paired_gain(*tallies), bootstrap(tallies[0]).mean_iu
    assert gain.low > 0
    assert gain.high - gain.low < (alone.high - alone.low) / 10


def test_nothing_gains_on_itself_and_no_image_tells_nothing(rng: np.random.Generator) -> None:
    tallies = np.stack([tally(matrix) for matrix in matrices(rng, 5)])
    assert paired_gain(tallies, tallies) == Interval(low=0.0, high=0.0)
    assert np.isnan(paired_gain(tallies[:1], tallies[:1]).low)
    with pytest.raises(ValueError, match="not of the same images"):
        paired_gain(tallies, tallies[:4])
