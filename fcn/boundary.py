"""How well the outlines of a label map are met: the boundary F1 of every class.

IU hardly sees outlines: most of a class's pixels lie inside it. Here only its boundary counts.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fcn.classes import IGNORE_INDEX
from fcn.errors import LabelError
from fcn.metrics import check_classes

TOLERANCE = 0.0075
"""How far apart two boundaries may lie and still agree, as a share of the image's diagonal.

Source: Csurka, Larlus and Perronnin, "What is a good evaluation measure for semantic
segmentation?", BMVC 2013, section 3. At 480 x 360 pixels these are 4.5 pixels.
"""

_NO_BOUNDARY = -1


def boundary_f1(
    label: NDArray[Any],
    prediction: NDArray[Any],
    num_classes: int,
    ignore_index: int = IGNORE_INDEX,
    *,
    tolerance: float = TOLERANCE,
) -> NDArray[np.float64]:
    """Boundary F1 of every class on one image, C values between 0 and 1.

    A pixel is on the boundary of its class if one of its four neighbours within the image is
    not of that class. Precision is the share of the predicted boundary that lies within the
    tolerance of the true one, recall the share of the true boundary that lies within the
    tolerance of the predicted one, each class by itself; F1 is their harmonic mean (Csurka,
    Larlus, Perronnin 2013). Distances are Euclidean, between pixel centres.

    A class with a boundary on one side only has 0; one without any boundary has nan. Over
    several images, the mean of a class runs over those where it is not nan.

    What the truth ignores belongs to no class in the prediction either. So nothing depends on
    what is predicted there, and where a class ends at ignored pixels (as every object of
    PASCAL VOC does) its boundary is theirs.

    Args:
        label: True classes, integers ``H x W``.
        prediction: Predicted classes, integers ``H x W``.
        num_classes: C; classes are 0..C-1.
        ignore_index: Label of pixels that belong to no class.
        tolerance: Share of the image's diagonal.

    Raises:
        LabelError: maps that are not ``H x W`` of one size, or values that are no class.
    """
    if label.ndim != 2 or label.shape != prediction.shape:
        raise LabelError(f"label is {label.shape}, prediction {prediction.shape}; expected H x W")
    ignored = label == ignore_index
    check_classes("label", label[~ignored], num_classes)
    check_classes("prediction", prediction[~ignored], num_classes)
    true, predicted = (_boundary(classes, ignored) for classes in (label, prediction))
    offsets = _disc(tolerance * float(np.hypot(*label.shape)))
    found, true_length = _met(true, predicted, offsets, num_classes)
    right, predicted_length = _met(predicted, true, offsets, num_classes)
    with np.errstate(invalid="ignore"):  # 0 / 0 is nan: no boundary at all
        recall, precision = found / true_length, right / predicted_length
        f1 = 2 * precision * recall / (precision + recall)
    one_sided = (true_length > 0) != (predicted_length > 0)
    missed = (precision == 0) & (recall == 0)
    return np.where(one_sided | missed, 0.0, f1)


def _boundary(classes: NDArray[Any], ignored: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The class of every boundary pixel, `_NO_BOUNDARY` elsewhere."""
    known = np.where(ignored, _NO_BOUNDARY, classes.astype(np.int64))
    edge = np.zeros(known.shape, bool)
    rows, columns = known[1:] != known[:-1], known[:, 1:] != known[:, :-1]
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= columns
    edge[:, :-1] |= columns
    return np.where(edge, known, _NO_BOUNDARY)


def _disc(radius: float) -> NDArray[np.int64]:
    """Offsets ``n x 2`` (down, right) of the pixels within a radius, the nearest first."""
    reach = np.arange(-int(radius), int(radius) + 1)
    down, right = np.meshgrid(reach, reach, indexing="ij")
    squares = (down**2 + right**2).ravel()
    inside = np.flatnonzero(squares <= radius**2)
    order = inside[np.argsort(squares[inside], kind="stable")]
    return np.stack([down.ravel()[order], right.ravel()[order]], axis=1)


def _met(
    boundary: NDArray[np.int64],
    other: NDArray[np.int64],
    offsets: NDArray[np.int64],
    num_classes: int,
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Boundary pixels of each class near the other map's boundary of that class, and all."""
    reach = int(offsets.max())
    padded = np.pad(other, reach, constant_values=_NO_BOUNDARY)
    width = padded.shape[1]
    y, x = np.nonzero(boundary != _NO_BOUNDARY)
    classes = boundary[y, x]
    length = np.bincount(classes, minlength=num_classes)
    places, flat = (y + reach) * width + (x + reach), padded.ravel()
    # Boundaries are few pixels, and most of them are met by a near one: what is left shrinks.
    for down, right in offsets:
        missed = flat[places + (down * width + right)] != classes
        places, classes = places[missed], classes[missed]
    return length - np.bincount(classes, minlength=num_classes), length
