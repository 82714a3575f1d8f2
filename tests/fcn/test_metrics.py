from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from fcn.errors import LabelError
from fcn.metrics import Scores, confusion


def slow_confusion(
    label: NDArray[Any], prediction: NDArray[Any], num_classes: int, ignore_index: int
) -> NDArray[np.int64]:
    matrix = np.zeros((num_classes, num_classes), np.int64)
    for true, predicted in zip(label.flat, prediction.flat, strict=True):
        if true != ignore_index:
            matrix[true, predicted] += 1
    return matrix


@st.composite
def maps(draw: st.DrawFn) -> tuple[NDArray[Any], NDArray[Any], int, int]:
    num_classes = draw(st.integers(1, 7))
    ignore_index = draw(st.sampled_from([255, num_classes, 100, 0]))
    dtype = draw(st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, np.uint64]))
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=8))
    values = st.sampled_from([*range(num_classes), ignore_index])
    label = draw(hnp.arrays(dtype, shape, elements=values))
    prediction = draw(hnp.arrays(dtype, shape, elements=st.integers(0, num_classes - 1)))
    return label, prediction, num_classes, ignore_index


@settings(deadline=None, max_examples=200)
@given(maps())
def test_confusion_matches_a_slow_loop(
    example: tuple[NDArray[Any], NDArray[Any], int, int],
) -> None:
    matrix = confusion(*example)
    np.testing.assert_array_equal(matrix, slow_confusion(*example))
    assert matrix.dtype == np.int64


@settings(deadline=None)
@given(maps())
def test_torch_tensors_count_like_arrays(
    example: tuple[NDArray[Any], NDArray[Any], int, int],
) -> None:
    label, prediction, num_classes, ignore_index = example
    tensors = torch.tensor(label.astype(np.int64)), torch.tensor(prediction.astype(np.int64))
    matrix = confusion(*tensors, num_classes, ignore_index)
    np.testing.assert_array_equal(matrix, confusion(*example))


def test_confusion_of_parts_adds_up(rng: np.random.Generator) -> None:
    label, prediction = rng.integers(0, 5, (2, 6, 30, 40), np.uint8)
    parts = sum(confusion(t, p, 5) for t, p in zip(label, prediction, strict=True))
    np.testing.assert_array_equal(confusion(label, prediction, 5), parts)


def test_rows_are_true_classes() -> None:
    label, prediction = np.array([[0, 0, 1]], np.uint8), np.array([[1, 1, 1]], np.uint8)
    assert confusion(label, prediction, 2).tolist() == [[0, 2], [0, 1]]


def test_ignored_pixels_count_nowhere_whatever_is_predicted_there() -> None:
    label, prediction = np.array([[255, 1]], np.uint8), np.array([[77, 1]], np.uint8)
    assert confusion(label, prediction, 2).tolist() == [[0, 0], [0, 1]]


def test_an_ignored_map_counts_nothing() -> None:
    label = np.full((4, 4), 255, np.uint8)
    assert not confusion(label, np.zeros_like(label), 3).any()


def test_negative_ignore_index() -> None:
    label, prediction = np.array([-100, 1]), np.array([0, 1])
    assert confusion(label, prediction, 2, ignore_index=-100).tolist() == [[0, 0], [0, 1]]


def test_stray_label_is_named_and_counted() -> None:
    label = np.zeros((40, 50), np.uint8)
    label.flat[:1204] = 7
    with pytest.raises(
        LabelError, match=r"^label holds class 7 in 1,204 pixels; classes are 0\.\.2$"
    ):
        confusion(label, np.zeros_like(label), 3)


def test_several_strays_are_counted() -> None:
    label = np.array([0, 9, 7, 9, 8])
    with pytest.raises(LabelError, match="class 7 in 1 pixel and 2 other values; classes are"):
        confusion(label, np.zeros_like(label), 3)


def test_negative_label_is_named() -> None:
    with pytest.raises(LabelError, match="label holds class -1 in 1 pixel;"):
        confusion(np.array([-1, 0]), np.array([0, 0]), 3)


def test_ignore_index_of_another_set_is_a_stray() -> None:
    with pytest.raises(LabelError, match="label holds class 255 in 2 pixels"):
        confusion(np.array([255, 255, 11]), np.array([0, 0, 0]), 11, ignore_index=11)


def test_predicted_class_out_of_range() -> None:
    with pytest.raises(LabelError, match=r"prediction holds class 3 in 1 pixel; classes are 0\."):
        confusion(np.array([0, 1]), np.array([0, 3]), 3)


def test_shapes_must_be_equal() -> None:
    with pytest.raises(LabelError, match="label is 3 x 4 but prediction 4 x 3"):
        confusion(np.zeros((3, 4), np.uint8), np.zeros((4, 3), np.uint8), 2)


@pytest.mark.parametrize("dtype", [np.float32, np.bool_])
def test_class_ids_are_integers(dtype: Any) -> None:
    values = np.zeros((2, 2), dtype)
    with pytest.raises(LabelError, match=f"label holds {values.dtype}; class ids are integers"):
        confusion(values, np.zeros((2, 2), np.uint8), 2)


def test_figures_computed_by_hand() -> None:
    # t = (10, 6, 4, 0); predicted = (10, 7, 3, 0); right = (8, 5, 2, 0)
    scores = Scores(np.array([[8, 2, 0, 0], [0, 5, 1, 0], [2, 0, 2, 0], [0, 0, 0, 0]]))
    assert scores.pixel_accuracy == pytest.approx(15 / 20)
    assert scores.mean_accuracy == pytest.approx((8 / 10 + 5 / 6 + 2 / 4) / 3)
    assert scores.mean_iu == pytest.approx((8 / 12 + 5 / 8 + 2 / 5) / 3)
    assert scores.frequency_weighted_iu == pytest.approx((10 * 8 / 12 + 6 * 5 / 8 + 4 * 2 / 5) / 20)
    np.testing.assert_allclose(scores.iu, [8 / 12, 5 / 8, 2 / 5, np.nan])
    np.testing.assert_allclose(scores.accuracy, [8 / 10, 5 / 6, 2 / 4, np.nan])
    assert scores.num_present == 3


@settings(deadline=None)
@given(hnp.arrays(np.int64, (4, 4), elements=st.integers(0, 50)))
def test_figures_are_the_papers_formulas(matrix: NDArray[np.int64]) -> None:
    scores, total = Scores(matrix), matrix.sum()
    true, predicted = matrix.sum(axis=1), matrix.sum(axis=0)
    if not total:
        return
    ius = {
        i: matrix[i, i] / (true[i] + predicted[i] - matrix[i, i])
        for i in range(4)
        if true[i] or predicted[i]
    }
    assert scores.num_present == len(ius)
    assert scores.pixel_accuracy == pytest.approx(sum(matrix[i, i] for i in range(4)) / total)
    assert scores.mean_iu == pytest.approx(sum(ius.values()) / len(ius))
    accuracies = [matrix[i, i] / true[i] for i in range(4) if true[i]]
    assert scores.mean_accuracy == pytest.approx(sum(accuracies) / len(accuracies))
    weighted = sum(true[i] * iu for i, iu in ius.items()) / total
    assert scores.frequency_weighted_iu == pytest.approx(weighted)


def test_a_class_only_predicted_has_iu_0_and_no_accuracy() -> None:
    scores = Scores(np.array([[3, 1], [0, 0]]))
    assert scores.iu.tolist() == [0.75, 0.0]
    assert scores.mean_iu == pytest.approx(0.375)
    assert scores.mean_accuracy == pytest.approx(0.75)
    assert scores.num_present == 2


def test_counts_beyond_float32_and_int32_are_exact() -> None:
    many = 2**40
    scores = Scores(np.array([[many, 1], [0, many]], np.int64))
    assert 0 < 1 - scores.pixel_accuracy < 1e-11


def test_a_matrix_without_counts_has_no_figures() -> None:
    scores = Scores(np.zeros((3, 3), np.int64))
    for figure in (
        scores.pixel_accuracy,
        scores.mean_accuracy,
        scores.mean_iu,
        scores.frequency_weighted_iu,
    ):
        assert np.isnan(figure)
    assert scores.num_present == 0


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.zeros((2, 3), np.int64), "C x C; this one is 2 x 3"),
        (np.zeros(4, np.int64), "this one is 4"),
        (np.zeros((2, 2), np.float32), "counts, integers >= 0"),
        (np.full((2, 2), -1), "counts, integers >= 0"),
    ],
)
def test_what_is_no_confusion_matrix(matrix: NDArray[Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scores(matrix)
