"""Scores of a model on labelled samples, at the labels' own resolution."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fcn.averaging import AveragedPredictor
from fcn.bands import Band
from fcn.boundary import boundary_f1
from fcn.classes import Classes
from fcn.errors import FcnError
from fcn.intervals import Intervals, bootstrap, tally
from fcn.metrics import Scores, confusion, mean_of_known
from fcn.predict import Predictor
from fcn.samples import Labelled, decode_labels, decode_pixels


@dataclass(frozen=True, eq=False)
class Scored:
    """One sample, decoded, predicted and compared.

    Attributes:
        image: RGB uint8 ``H x W x 3``, without bands.
        label: True classes ``H x W``.
        prediction: Predicted classes ``H x W``.
        confusion: Int64 ``C x C``, rows true.
        further: The same of each further head, by its name.
    """

    image: np.ndarray
    label: np.ndarray
    prediction: np.ndarray
    confusion: np.ndarray
    further: Mapping[str, "Scored"] = field(default_factory=dict)


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
        further: The same of each further head, by its name.
    """

    scores: Scores
    intervals: Intervals
    boundary_f1: NDArray[np.float64]
    images: list[ImageScores]
    further: Mapping[str, "SplitScores"] = field(default_factory=dict)

    @property
    def mean_boundary_f1(self) -> float:
        """Mean of `boundary_f1` over the classes that have one."""
        return mean_of_known(self.boundary_f1)


def score_split(
    samples: Iterable[Scored],
    classes: Classes,
    further_classes: Mapping[str, Classes] | None = None,
) -> SplitScores:
    """All scores of a split, from its samples as `score_samples` gives them.

    Beside one confusion matrix a head a few numbers an image are kept, no pixels.

    Args:
        samples: Of the split.
        classes: Of the first head.
        further_classes: Of the other heads, by name.
    """
    first = _SplitTally(classes)
    further = {name: _SplitTally(c) for name, c in (further_classes or {}).items()}
    for sample in samples:
        first.add(sample)
        for name, head in further.items():
            head.add(sample.further[name])
    return first.scores({name: head.scores({}) for name, head in further.items()})


class _SplitTally:
    """What is kept of the samples of a split for the scores of one head."""

    def __init__(self, classes: Classes) -> None:
        self.num_classes, self.ignore_index = len(classes), classes.ignore_index
        self.total = np.zeros((self.num_classes, self.num_classes), np.int64)
        self.tallies: list[NDArray[np.int64]] = []
        self.boundaries: list[NDArray[np.float64]] = []
        self.images: list[ImageScores] = []

    def add(self, sample: Scored) -> None:
        """Take up one sample."""
        self.total += sample.confusion
        self.tallies.append(tally(sample.confusion))
        boundary = boundary_f1(sample.label, sample.prediction, self.num_classes, self.ignore_index)
        self.boundaries.append(boundary)
        scores = Scores(sample.confusion)
        self.images.append(
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

    def scores(self, further: Mapping[str, SplitScores]) -> SplitScores:
        """The scores of all samples."""
        by_class = np.reshape(self.boundaries, (-1, self.num_classes)).T
        return SplitScores(
            scores=Scores(self.total),
            intervals=bootstrap(np.reshape(self.tallies, (-1, 3, self.num_classes))),
            boundary_f1=np.array([mean_of_known(values) for values in by_class]),
            images=self.images,
            further=further,
        )


def score_samples(
    predictor: Predictor | AveragedPredictor, samples: Iterable[Labelled]
) -> Iterator[Scored]:
    """Predict samples one by one, in their order; the next is decoded meanwhile.

    Raises:
        ImageError: A sample whose image or label map cannot be decoded; says which.
        LabelError: A label map of another size than its image, or with a value that is
            neither a class nor ``ignore_index``; says of which sample.
        ScoresNotFinite: the network's numbers overflow at a sample; says at which.
    """
    names = tuple(predictor.further_classes)
    heads = [predictor.classes, *predictor.further_classes.values()]
    with ThreadPoolExecutor(1) as decoder:
        for key, image, labels in _one_ahead(
            decoder, samples, names, heads[0].ignore_index, predictor.bands
        ):
            with _named(key):
                (found,) = predictor.predict([image])
                predictions = [found.label, *(head.label for head in found.further.values())]
                matrices = [
                    confusion(label, prediction, len(classes), classes.ignore_index)
                    for label, prediction, classes in zip(labels, predictions, heads, strict=True)
                ]
            colours = image[:, :, :3].astype(np.uint8, copy=False)
            first, *others = map(partial(Scored, colours), labels, predictions, matrices)
            yield replace(first, further=dict(zip(names, others, strict=True)))


def _one_ahead(
    decoder: ThreadPoolExecutor,
    samples: Iterable[Labelled],
    further: Sequence[str],
    ignore_index: int,
    bands: Sequence[Band],
) -> Iterator[tuple[str, np.ndarray, list[np.ndarray]]]:
    pending = None
    for sample in samples:
        following = decoder.submit(_decode, sample, further, ignore_index, bands)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()


def _decode(
    sample: Labelled, further: Sequence[str], ignore_index: int, bands: Sequence[Band]
) -> tuple[str, np.ndarray, list[np.ndarray]]:
    """Key, image with its bands, and the label map of every head."""
    with _named(sample.key):
        image = decode_pixels(sample, bands)
        labels = decode_labels(sample, further, image.shape[:2], ignore_index)
    return sample.key, image, labels


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Errors about data say of which sample they are."""
    try:
        yield
    except FcnError as error:
        raise type(error)(f"sample {key}: {error}") from error
