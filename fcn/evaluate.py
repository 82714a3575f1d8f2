"""Scores of a model on labelled samples, at the labels' own resolution."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fcn.averaging import AveragedPredictor
from fcn.boundary import boundary_f1
from fcn.classes import Classes
from fcn.errors import FcnError, LabelError
from fcn.images import decode_image
from fcn.intervals import Intervals, bootstrap, tally
from fcn.masks import decode_mask
from fcn.metrics import Scores, confusion, mean_of_known
from fcn.predict import Predictor
from fcn.samples import Labelled


@dataclass(frozen=True, eq=False)
class Scored:
    """One sample, decoded, predicted and compared.

    Attributes:
        image: RGB uint8 ``H x W x 3``.
        label: True classes ``H x W``.
        prediction: Predicted classes ``H x W``.
        confusion: Int64 ``C x C``, rows true.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confusion: np.ndarray


@dataclass(frozen=True, kw_only=True)
class ImageScores:
    """The scores of one image alone; nan where there is nothing to score.

    Attributes:
        height: Rows of its label map.
        width: Columns of its label map.
        pixels: Pixels that count, those with a class.
        pixel_accuracy: Share of them that is right.
        mean_iu: Over the classes in its truth or prediction.
        num_present: How many these are.
        boundary_f1: Mean over the classes that have a boundary, see `fcn.boundary`.
    """

    height: int
    width: int
    pixels: int
    pixel_accuracy: float
    mean_iu: float
    num_present: int
    boundary_f1: float


@dataclass(frozen=True, kw_only=True, eq=False)
class SplitScores:
    """What a model scores on a split.

    Attributes:
        scores: Of all pixels together.
        intervals: Of mean IU and pixel accuracy, by the choice of the images.
        boundary_f1: Of every class, C values: the mean over the images where the class has a
            boundary, nan if there is none.
        images: Of every image alone, in order.
    """

    scores: Scores
    intervals: Intervals
    boundary_f1: NDArray[np.float64]
    images: list[ImageScores]

    @property
    def mean_boundary_f1(self) -> float:
        """Mean of `boundary_f1` over the classes that have one."""
        return mean_of_known(self.boundary_f1)


def score_split(samples: Iterable[Scored], classes: Classes) -> SplitScores:
    """All scores of a split, from its samples as `score_samples` gives them.

    Beside one confusion matrix a few numbers an image are kept, no pixels.
    """
    num_classes = len(classes)
    total = np.zeros((num_classes, num_classes), np.int64)
    tallies, boundaries, images = [], [], []
    for sample in samples:
        total += sample.confusion
        tallies.append(tally(sample.confusion))
        boundary = boundary_f1(sample.label, sample.prediction, num_classes, classes.ignore_index)
        boundaries.append(boundary)
        scores = Scores(sample.confusion)
        images.append(
            ImageScores(
                height=sample.label.shape[0],
                width=sample.label.shape[1],
                pixels=int(sample.confusion.sum()),
                pixel_accuracy=scores.pixel_accuracy,
                mean_iu=scores.mean_iu,
                num_present=scores.num_present,
                boundary_f1=mean_of_known(boundary),
            )
        )
    by_class = np.reshape(boundaries, (-1, num_classes)).T
    return SplitScores(
        scores=Scores(total),
        intervals=bootstrap(np.reshape(tallies, (-1, 3, num_classes))),
        boundary_f1=np.array([mean_of_known(values) for values in by_class]),
        images=images,
    )


def score_samples(
    predictor: Predictor | AveragedPredictor, samples: Iterable[Labelled]
) -> Iterator[Scored]:
    """Predict samples one by one, in their order; the next is decoded meanwhile.

    Raises:
        ImageError: A sample whose image or label map cannot be decoded; says which.
        LabelError: A label map of another size than its image, or with a value that is
            neither a class nor ``ignore_index``; says of which sample.
    """
    classes = predictor.classes
    with ThreadPoolExecutor(1) as decoder:
        for key, image, label in _one_ahead(decoder, samples):
            (prediction,) = predictor([image])
            with _named(key):
                matrix = confusion(label, prediction, len(classes), classes.ignore_index)
            yield Scored(image, label, prediction, matrix)


def _one_ahead(
    decoder: ThreadPoolExecutor, samples: Iterable[Labelled]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    pending = None
    for sample in samples:
        following = decoder.submit(_decode, sample)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()


def _decode(sample: Labelled) -> tuple[str, np.ndarray, np.ndarray]:
    """Key, image and label map."""
    with _named(sample.key):
        image, label = decode_image(sample.image).pixels, decode_mask(sample.label)
        if image.shape[:2] != label.shape:
            raise LabelError(f"label map is {label.shape}, its image {image.shape[:2]}")
    return sample.key, image, label


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors about data say of which sample they are."""
    try:
        yield
    except FcnError as error:
        raise type(error)(f"sample {key}: {error}") from error
