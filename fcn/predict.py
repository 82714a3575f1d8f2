"""Label maps of images of any size, by a trained model.

A model of images with bands (`fcn.bands`) takes arrays ``H x W x (3 + B)``, the bands behind the
colours: uint8 if all of them are, else float32.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from fcn.backends import Backend, find_backend, make_runtime
from fcn.bands import Band
from fcn.checkpoint import Model, check_sees_images
from fcn.classes import Classes
from fcn.device import Precision, autocast
from fcn.errors import BackendError, ScoresNotFinite
from fcn.streams import Streams, on_gpu

TILE_SIZE = 1024
"""Side in pixels of the tiles that larger images are cut into."""

MAX_WHOLE_PIXELS = 4_000_000
"""Pixels of an image that runs whole; a ResNet's first maps then take a gigabyte."""

MAX_SCORES = 84_000_000
"""Pixels times classes of an image that runs whole: 336 MB of scores, 4 MP at 21 classes."""

MAX_WHOLE_SIDE = 8192
"""Pixels of the longer side of an image that runs whole: without a fused kernel, what upsamples
it is a matrix of 34 MB at stride 8, which grows with the square of the side."""


Item = TypeVar("Item")


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: Class of every pixel, uint8 (uint16 above 256 classes) ``H x W``.
        confidence: Mean over the pixels of the winning class's probability.
        further: The same of each further head, by its name; label and confidence are the first
            head's.
    """

    label: np.ndarray
    confidence: float
    further: Mapping[str, "Prediction"] = field(default_factory=dict)


class Predictor:
    """Segments images, each at its own size.

    On a CPU images run one by one: a batch gains nothing, and rounds otherwise. On a GPU those
    of equal size run together, and the next ones are on their way there meanwhile
    (`fcn.streams`). What a CPU says of an image depends on the image, the backend, the kind of
    processor and the number of torch's threads (which divide the sums), and on nothing else.
    Its first predictor compiles a kernel, which is kept for later processes (`fcn.fused_cpu`).

    Args:
        model: a trained model.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "auto" is bfloat16 on a GPU and float32 on a CPU.
        batch_size: Images of equal size that run together on a GPU; None is 8.
        tile_size: Side of the tiles in pixels, rounded up to the network's stride; None
            cuts only images above `MAX_WHOLE_PIXELS`, `MAX_SCORES` or `MAX_WHOLE_SIDE`.
            Tiles overlap by what the network sees around a pixel, so that their labels are
            those of the whole image. A network that looks at the whole image at once (MobileNet's
            gates) is never cut.
        backend: What runs the network: "torch", on a CPU "openvino" or "onnxruntime", or
            "auto", see `fcn.backends`.

    Raises:
        BackendError: a backend that is not installed or not for this device or precision; a
            model that computes with integers, without a backend for it.
        DeviceError: a device this machine does not have.
        ValueError: a model of other channels than three and its bands.
    """

    def __init__(
        self,
        model: Model,
        *,
        device: str = "auto",
        precision: Precision = "auto",
        batch_size: int | None = None,
        tile_size: int | None = None,
        backend: Backend = "torch",
    ) -> None:
        check_sees_images(model)
        self.backend, self.device = find_backend(backend, device, precision)
        if self.backend == "torch" and model.ranges is not None:
            raise BackendError(
                "a quantised model runs in OpenVINO or ONNX Runtime, not in torch: "
                "pip install 'fcn-flows[openvino]' and take device='cpu', backend='openvino'; "
                "or take the model that it was made from"
            )
        self.precision: Precision = precision
        self.model = model
        self._streams: Streams | None = None
        self._runtime = None if self.backend == "torch" else make_runtime(model, self.backend)
        if self.device.type == "cuda":
            self.net = on_gpu(model.net, self.device, precision)
            sizes = [len(classes) for classes in model.all_classes]
            self._streams = Streams(self.net, model.input, sizes)
        else:
            self.net = model.net.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
            # Here, for it imports Numba, and compiles where that has not been done before.
            self._fused = import_module("fcn.fused_cpu").fused_winners
        self.batch_size = 1 if self.device.type == "cpu" else batch_size or 8
        self.tile_size = tile_size

    @property
    def classes(self) -> Classes:
        """Classes of the label maps; of several heads, the first one's."""
        return self.model.classes

    @property
    def side_by_side(self) -> bool:
        """Whether it runs on the cores of this machine, an image a core: not on a GPU.

        Several threads may call it at once either way.
        """
        return self.device.type == "cpu"

    @property
    def bands(self) -> tuple[Band, ...]:
        """Bands that images have behind their colours."""
        return self.model.input.bands

    @property
    def further_classes(self) -> Mapping[str, Classes]:
        """Classes of the other heads, by name."""
        return self.model.further_classes

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Label maps ``H x W`` of RGB images uint8 ``H x W x 3``, in their order.

        Of a model of several heads these are the first head's; `predict` gives those of all.
        Images of a model with bands are ``H x W x (3 + B)``, see above.
        """
        return [prediction.label for prediction in self.predict(images)]

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Label maps and confidences of images, as `__call__` takes them, in their order.

        Raises:
            ScoresNotFinite: the network's numbers overflow at one of the images, as at a band's
                value of 1e30; it has no label there.
            ValueError: An array that is no such image.
        """
        images = self.model.input.check_images(images)
        done: dict[int, Prediction] = {}
        for batch, found in one_ahead(self._begun(images)):
            done.update(zip(batch, found(), strict=True))
        return check_finite([done[index] for index in range(len(images))])

    def _begun(
        self, images: Sequence[np.ndarray]
    ) -> Iterator[tuple[list[int], Callable[[], list[Prediction]]]]:
        """Batches of indices, with what waits for their predictions."""
        by_size = sorted(range(len(images)), key=lambda index: images[index].shape)
        for shape, group in itertools.groupby(by_size, key=lambda index: images[index].shape):
            tile = self._tile(shape[0], shape[1])
            for batch in _batches(list(group), 1 if tile else self.batch_size):
                pixels = [images[index] for index in batch]
                if tile:
                    yield batch, partial(self._run_tiles, pixels[0], tile)
                else:
                    yield batch, partial(self._run, self._begin(pixels, 0, 0, *shape[:2]))

    def _tile(self, height: int, width: int) -> int | None:
        """Side of the tiles of an image; None if it runs whole."""
        if self.net.sees_everything:
            return None
        if self.tile_size is None:
            pixels = height * width
            large = pixels > MAX_WHOLE_PIXELS or pixels * self.net.num_classes > MAX_SCORES
            long = max(height, width) > MAX_WHOLE_SIDE
            return TILE_SIZE if large or long else None
        return self.tile_size if max(height, width) > self.tile_size else None

    def _run(self, found: Callable[[], tuple[list[np.ndarray], Tensor]]) -> list[Prediction]:
        """Images of equal size, together."""
        labels, sums = found()
        means = sums / labels[0][0].size
        return [
            prediction([label[index] for label in labels], confidences, self.further_classes)
            for index, confidences in enumerate(means.T.tolist())
        ]

    def _run_tiles(self, image: np.ndarray, tile: int) -> list[Prediction]:
        """One image in tiles; only labels and a sum outlive a tile."""
        height, width, _ = image.shape
        step = self.net.coarsest
        tile, margin = (-(-n // step) * step for n in (tile, self.net.field // 2 + 1))
        whole = self._empty(height, width)
        total = torch.zeros(len(whole), dtype=torch.float64)

        def begun() -> Iterator[tuple[list[np.ndarray], Callable[[], Any]]]:
            for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
                y, x = max(0, top - margin), max(0, left - margin)
                seen = image[y : top + tile + margin, x : left + tile + margin]
                cores = [label[top : top + tile, left : left + tile] for label in whole]
                yield cores, self._begin([seen], top - y, left - x, *cores[0].shape)

        for cores, found in one_ahead(begun()):
            labels, sums = found()
            for core, label in zip(cores, labels, strict=True):
                core[:] = label[0]
            total += sums[:, 0]
        confidences = (total / (height * width)).tolist()
        return [prediction(whole, confidences, self.further_classes)]

    def _begin(
        self, images: Sequence[np.ndarray], top: int, left: int, height: int, width: int
    ) -> Callable[[], tuple[list[np.ndarray], Tensor]]:
        """Have a GPU start with a window of images of equal size; a CPU starts when asked.

        What is returned gives label maps ``N x H x W`` of each of K heads, and the sums of
        their probabilities, float64 ``K x N``.
        """
        if self._streams is not None:
            return self._streams.begin(images, (top, left, height, width))
        return partial(self._label, images, top, left, height, width)

    @torch.inference_mode()
    def _label(
        self, images: Sequence[np.ndarray], top: int, left: int, height: int, width: int
    ) -> tuple[list[np.ndarray], Tensor]:
        score = self._score(images[0][None] if len(images) == 1 else np.stack(images))
        return self._choose(score, top, left, height, width)

    def _score(self, pixels: np.ndarray) -> Tensor:
        """Scores ``N x C x h x w`` at the network's stride, of ``N x H x W x (3 + B)``."""
        pixels = np.require(pixels, None, ["C", "W"])  # what torch takes
        if self._runtime is not None:
            fused: Tensor = self.net.fused(self._runtime(pixels))
            return fused
        images = torch.from_numpy(pixels).to(self.device, non_blocking=True)
        with autocast(self.device, self.precision):
            score: Tensor = self.net.score(self.model.input.normalise_interleaved(images))
        return score

    def _choose(
        self, score: Tensor, top: int, left: int, height: int, width: int
    ) -> tuple[list[np.ndarray], Tensor]:
        """Winning classes in a window, and the sums of their probabilities.

        Label maps ``N x H x W`` of each of K heads, and float64 ``K x N``.
        """
        upscore = self.net.upscore
        window = upscore.crop + top, upscore.crop + left, height, width
        sizes = [len(classes) for classes in self.model.all_classes]
        heads = torch.split(score, sizes, dim=1)
        labels, sums = zip(*(self._fused(upscore, head, *window) for head in heads), strict=True)
        return list(labels), torch.from_numpy(np.stack(sums))

    def _empty(self, *shape: int) -> list[np.ndarray]:
        """Label maps of each head, yet to be filled."""
        return [np.empty(shape, label_dtype(classes)) for classes in self.model.all_classes]


def label_dtype(classes: Classes) -> type[np.integer[Any]]:
    """What a class id is stored in."""
    return np.uint8 if len(classes) <= 256 else np.uint16


def prediction(
    labels: Sequence[np.ndarray], confidences: Sequence[float], further: Iterable[str]
) -> Prediction:
    """A prediction of label maps and confidences, one of each head, the first one's first."""
    first, *others = map(Prediction, labels, confidences)
    return replace(first, further=dict(zip(further, others, strict=True)))


def check_finite(predictions: list[Prediction]) -> list[Prediction]:
    """Predictions, if a class won at every pixel: where scores are no numbers none does.

    Raises:
        ScoresNotFinite: a confidence is no number.
    """
    heads = [head for one in predictions for head in (one, *one.further.values())]
    if all(math.isfinite(head.confidence) for head in heads):
        return predictions
    raise ScoresNotFinite(
        "the network's scores are not finite: its numbers overflowed; look for extreme values in "
        "the image's bands, or take a precision of a wider range (bf16, fp32) than fp16"
    )


def one_ahead(items: Iterator[Item]) -> Iterator[Item]:
    """Each item once the next one has been made too."""
    for item, _ in itertools.pairwise(itertools.chain(items, (None,))):
        assert item is not None
        yield item


def _batches(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
