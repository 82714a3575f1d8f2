"""The paper's four figures, all read off one confusion matrix.

Rows are true classes, columns predicted ones, entries pixels: int64, so that no count is lost
however large the split. Matrices of parts of a split are added; the figures are taken last.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fcn.classes import IGNORE_INDEX
from fcn.errors import LabelError

if TYPE_CHECKING:
    from torch import Tensor


def confusion(
    label: "NDArray[Any] | Tensor",
    prediction: "NDArray[Any] | Tensor",
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
) -> NDArray[np.int64]:
    """Confusion matrix C x C of a label map and its prediction; rows are true classes.

    Args:
        label: True classes, integers of any shape: one map H x W, or a batch N x H x W.
        prediction: Predicted classes, of the same shape.
        num_classes: C; classes are 0..C-1.
        ignore_index: Label of pixels that are not counted, whatever is predicted there.

    Raises:
        LabelError: shapes that differ, values that are no integers, a label that is neither a
            class nor `ignore_index`, or a predicted value that is no class.
    """
    true, predicted = _integers(label, "label"), _integers(prediction, "prediction")
    if true.shape != predicted.shape:
        raise LabelError(f"label is {_shape(true)} but prediction {_shape(predicted)}")
    counted = true != ignore_index
    true, predicted = true[counted], predicted[counted]
    check_classes("label", true, num_classes)
    check_classes("prediction", predicted, num_classes)
    bins = true.astype(np.int64) * num_classes + predicted.astype(np.int64)
    counts = np.bincount(bins, minlength=num_classes**2)
    return counts.reshape(num_classes, num_classes).astype(np.int64, copy=False)


def _integers(values: "NDArray[Any] | Tensor", name: str) -> NDArray[Any]:
    array = values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
    if array.dtype.kind not in "iu":
        raise LabelError(f"{name} holds {array.dtype}; class ids are integers")
    return array


def check_classes(name: str, values: NDArray[Any], num_classes: int) -> None:
    """Find out whether all values are classes.

    Args:
        name: What the values are, for the message.
        values: Integers, without ignored ones.
        num_classes: C; classes are 0..C-1.

    Raises:
        LabelError: a value below 0 or above C-1; says which and in how many pixels.
    """
    if not values.size or (values.min() >= 0 and values.max() < num_classes):
        return
    strays, counts = np.unique(values[(values < 0) | (values >= num_classes)], return_counts=True)
    pixels = "1 pixel" if counts[0] == 1 else f"{counts[0]:,} pixels"
    others = f" and {len(strays) - 1} other values" if len(strays) > 1 else ""
    raise LabelError(
        f"{name} holds class {strays[0]} in {pixels}{others}; classes are 0..{num_classes - 1}"
    )


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "a single value"


@dataclass(frozen=True, eq=False)
class Scores:
    """Figures of one confusion matrix, each between 0 and 1.

    With ``n_ij`` pixels of class i predicted as j and ``t_i`` pixels of class i (Long,
    Shelhamer, Darrell 2015, section 5). A class that occurs neither in truth nor in prediction
    is nan in `iu` and left out of the means. Figures of a matrix without any count are nan.

    Raises:
        ValueError: a matrix that is not square, or counts that are not integers >= 0.
    """

    confusion: NDArray[np.int64]

    def __post_init__(self) -> None:
        matrix = self.confusion
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"a confusion matrix is C x C; this one is {_shape(matrix)}")
        if matrix.dtype.kind not in "iu" or (matrix < 0).any():
            raise ValueError("a confusion matrix holds counts, integers >= 0")

    @property
    def pixel_accuracy(self) -> float:
        """Share of the pixels whose class is right: ``sum n_ii / sum t_i``."""
        return float(_ratio(np.trace(self.confusion), self.confusion.sum()))

    @property
    def mean_accuracy(self) -> float:
        """Mean of `accuracy` over the classes that occur in truth."""
        return mean_of_known(self.accuracy)

    @property
    def mean_iu(self) -> float:
        """Mean of `iu` over the classes present in truth or prediction."""
        return mean_of_known(self.iu)

    @property
    def frequency_weighted_iu(self) -> float:
        """IU weighted by how often a class occurs in truth: ``sum t_i IU_i / sum t_i``."""
        true = self._true
        return float(_ratio(np.nansum(true * self.iu), true.sum()))

    @property
    def accuracy(self) -> NDArray[np.float64]:
        """Share of each class's pixels that were found: ``n_ii / t_i``; nan if there are none."""
        return _ratio(self._right, self._true)

    @property
    def iu(self) -> NDArray[np.float64]:
        """Intersection over union per class: ``n_ii / (t_i + sum_j n_ji - n_ii)``."""
        return _ratio(self._right, self._union)

    @property
    def num_present(self) -> int:
        """How many classes occur in truth or prediction: those that `mean_iu` runs over."""
        return int(np.count_nonzero(self._union))

    @property
    def _right(self) -> NDArray[Any]:
        return np.diagonal(self.confusion)

    @property
    def _true(self) -> NDArray[Any]:
        return np.asarray(self.confusion.sum(axis=1))

    @property
    def _union(self) -> NDArray[Any]:
        return np.asarray(self._true + self.confusion.sum(axis=0) - self._right)


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """``part / whole``, nan where the whole is nothing."""
    whole = np.asarray(whole, dtype=np.float64)
    ratio: NDArray[np.float64] = np.full(whole.shape, np.nan)
    np.divide(part, whole, out=ratio, where=whole > 0)
    return ratio


def mean_of_known(values: NDArray[np.float64]) -> float:
    """Mean of the values that are a number; nan if none is."""
    present = values[~np.isnan(values)]
    return float(present.mean()) if present.size else float("nan")
