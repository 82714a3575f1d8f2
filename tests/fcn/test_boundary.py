"""Boundary F1 against a slow loop, and on outlines whose score is known."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fcn.boundary import TOLERANCE, boundary_f1
from fcn.errors import LabelError

IGNORE = 255


def slow_boundary_f1(
    label: NDArray[Any], prediction: NDArray[Any], num_classes: int, tolerance: float
) -> list[float]:
    height, width = label.shape
    masked = np.where(label == IGNORE, IGNORE, prediction)
    radius = tolerance * math.hypot(height, width)

    def boundary(classes: NDArray[Any], name: int) -> list[tuple[int, int]]:
        found = []
        for y, x in np.argwhere(classes == name).tolist():
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width]
            if any(classes[place] != name for place in inside):
                found.append((y, x))
        return found

    def near(first: list[tuple[int, int]], second: list[tuple[int, int]]) -> float:
        return sum(any(math.dist(a, b) <= radius for b in second) for a in first) / len(first)

    scores = []
    for name in range(num_classes):
        true, predicted = boundary(label, name), boundary(masked, name)
        if not true and not predicted:
            scores.append(math.nan)
        elif not true or not predicted:
            scores.append(0.0)
        else:
            recall, precision = near(true, predicted), near(predicted, true)
            both = recall + precision
            scores.append(2 * recall * precision / both if both else 0.0)
    return scores


@st.composite
def maps(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], int, float]:
    num_classes = draw(st.integers(1, 4))
    shape = draw(hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    labels = st.sampled_from([*range(num_classes), IGNORE])
    label = draw(hnp.arrays(np.uint8, shape, elements=labels))
    prediction = draw(hnp.arrays(np.uint8, shape, elements=st.integers(0, num_classes - 1)))
    return label, prediction, num_classes, draw(st.sampled_from([0.0, 0.1, 0.2, 0.35]))


@settings(deadline=None, max_examples=150)
@given(maps())
def test_boundary_f1_is_that_of_a_slow_loop(
    example: tuple[NDArray[Any], NDArray[Any], int, float],
) -> None:
    label, prediction, num_classes, tolerance = example
    found = boundary_f1(label, prediction, num_classes, tolerance=tolerance)
    np.testing.assert_allclose(found, slow_boundary_f1(label, prediction, num_classes, tolerance))


def half(edge: int, shape: tuple[int, int] = (30, 40)) -> NDArray[np.uint8]:
    """Class 1 from a column on."""
    label = np.zeros(shape, np.uint8)
    label[:, edge:] = 1
    return label


def test_the_tolerance_is_a_share_of_the_diagonal() -> None:
    # diagonal 50: 0.06 of it are 3 pixels
    assert boundary_f1(half(20), half(23), 2, tolerance=0.06).tolist() == [1, 1]
    assert boundary_f1(half(20), half(24), 2, tolerance=0.06).tolist() == [0, 0]


def test_a_class_of_one_side_only_has_0_and_an_absent_one_none() -> None:
    found = boundary_f1(half(20), half(20) * 2, 4)
    np.testing.assert_array_equal(found, [1, 0, 0, np.nan])


def test_a_map_of_one_class_has_no_boundary() -> None:
    whole = np.ones((5, 6), np.uint8)
    assert np.isnan(boundary_f1(whole, whole, 2)).all()


def test_nothing_depends_on_what_is_predicted_at_ignored_pixels(rng: np.random.Generator) -> None:
    label, prediction = rng.integers(0, 3, (2, 40, 50)).astype(np.uint8)
    label[10:30, 20:30] = IGNORE
    changed = prediction.copy()
    changed[10:30, 20:30] = 2
    np.testing.assert_array_equal(boundary_f1(label, prediction, 3), boundary_f1(label, changed, 3))


def test_objects_that_end_at_ignored_bands_have_boundaries() -> None:
    label = half(20)
    label[:, 18:23] = IGNORE
    assert boundary_f1(label, half(20), 2).tolist() == [1, 1]
    assert (boundary_f1(label, half(30), 2) < 1).all()


def test_the_standard_tolerance_is_four_and_a_half_pixels_of_camvid() -> None:
    assert TOLERANCE * math.hypot(360, 480) == pytest.approx(4.5)


@pytest.mark.parametrize(
    ("label", "prediction", "message"),
    [
        (np.zeros((3, 4), int), np.zeros((4, 3), int), r"label is \(3, 4\), prediction \(4, 3\)"),
        (np.zeros(4, int), np.zeros(4, int), "expected H x W"),
        (np.full((2, 2), 7), np.zeros((2, 2), int), "label holds class 7 in 4 pixels"),
        (np.zeros((2, 2), int), np.full((2, 2), 3), "prediction holds class 3 in 4 pixels"),
    ],
)
def test_other_maps_are_refused(
    label: NDArray[Any], prediction: NDArray[Any], message: str
) -> None:
    with pytest.raises(LabelError, match=message):
        boundary_f1(label, prediction, 3)
