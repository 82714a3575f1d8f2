"""Scores of a model on labelled samples, at the labels' own resolution."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from fcn.errors import LabelError
from fcn.images import decode_image
from fcn.masks import decode_mask
from fcn.metrics import confusion
from fcn.predict import Predictor
from fcn.train import Labelled


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


def score_samples(predictor: Predictor, samples: Iterable[Labelled]) -> Iterator[Scored]:
    """Predict samples one by one, in their order; the next is decoded meanwhile.

    Raises:
        LabelError: a label map of another size than its image, or with a value that is
            neither a class nor ``ignore_index``.
    """
    classes = predictor.classes
    with ThreadPoolExecutor(1) as decoder:
        for image, label in _one_ahead(decoder, samples):
            if image.shape[:2] != label.shape:
                raise LabelError(f"label map is {label.shape}, its image {image.shape[:2]}")
            (prediction,) = predictor([image])
            matrix = confusion(label, prediction, len(classes), classes.ignore_index)
            yield Scored(image, label, prediction, matrix)


def _one_ahead(
    decoder: ThreadPoolExecutor, samples: Iterable[Labelled]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    pending = None
    for sample in samples:
        following = decoder.submit(_decode, sample)
        if pending is not None:
            yield pending.result()
        pending = following
    if pending is not None:
        yield pending.result()


def _decode(sample: Labelled) -> tuple[np.ndarray, np.ndarray]:
    return decode_image(sample.image).pixels, decode_mask(sample.label)
