"""Label maps of images of any size, by a trained model."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fcn.backends import Backend, find_backend, make_runtime
from fcn.checkpoint import Model, check_gives_labels
from fcn.classes import Classes
from fcn.device import Precision, autocast
from fcn.errors import BackendError
from fcn.winners import winners

TILE_SIZE = 1024
"""Side in pixels of the tiles that larger images are cut into."""

MAX_WHOLE_PIXELS = 4_000_000
"""Pixels of an image that runs whole; a ResNet's first maps then take a gigabyte."""

MAX_SCORES = 84_000_000
"""Pixels times classes of an image that runs whole: 336 MB of scores, 4 MP at 21 classes."""

BAND_ROWS = 24
"""Rows that a CPU upsamples and reads off together: 1 MB of scores at 500 pixels and 21 classes."""


@dataclass(frozen=True)
class Prediction:
    """What a model says of one image.

    Attributes:
        label: Class of every pixel, uint8 (uint16 above 256 classes) ``H x W``.
        confidence: Mean over the pixels of the winning class's probability.
    """

    label: np.ndarray
    confidence: float


class Predictor:
    """Segments images, each at its own size.

    On a CPU images run one by one: a batch gains nothing, and rounds otherwise. On a GPU those
    of equal size run together. What a CPU says of an image depends on the image, the backend,
    the kind of processor and the number of torch's threads (which divide the sums), and on
    nothing else.

    Args:
        model: a trained model.
        device: "auto", "cpu", "cuda", "cuda:1".
        precision: "auto" is bfloat16 on a GPU and float32 on a CPU.
        batch_size: Images of equal size that run together on a GPU; None is 8.
        tile_size: Side of the tiles in pixels, rounded up to the network's stride; None
            cuts only images above `MAX_WHOLE_PIXELS` or `MAX_SCORES`. Tiles overlap by
            what the network sees around a pixel, so that their labels are those of the
            whole image. A network that looks at the whole image at once (MobileNet's
            gates) is never cut.
        backend: What runs the network: "torch", on a CPU "openvino" or "onnxruntime", or
            "auto", see `fcn.backends`.

    Raises:
        BackendError: a backend that is not installed or not for this device or precision; a
            model that computes with integers, without a backend for it.
        DeviceError: a device this machine does not have.
        ValueError: a model of other than three channels, or of several heads.
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
        check_gives_labels(model)
        self.backend, self.device = find_backend(backend, device, precision)
        if self.backend == "torch" and model.ranges is not None:
            raise BackendError(
                "a quantised model runs in OpenVINO or ONNX Runtime, not in torch: "
                "pip install 'fcn-flows[openvino]' and take device='cpu', backend='openvino'; "
                "or take the model that it was made from"
            )
        self.precision: Precision = precision
        self.model = model
        self.net = model.net.to(self.device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        self._runtime = None if self.backend == "torch" else make_runtime(model, self.backend)
        self.batch_size = 1 if self.device.type == "cpu" else batch_size or 8
        self.tile_size = tile_size

    @property
    def classes(self) -> Classes:
        """Classes of the label maps."""
        return self.model.classes

    @property
    def side_by_side(self) -> bool:
        """Whether several threads may call it at once, with an image each: not on a GPU."""
        return self.device.type == "cpu"

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Label maps ``H x W`` of RGB images uint8 ``H x W x 3``, in their order."""
        return [prediction.label for prediction in self.predict(images)]

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Label maps and confidences of RGB images uint8 ``H x W x 3``, in their order.

        Raises:
            ValueError: An array that is no such image.
        """
        check_images(images)
        done: dict[int, Prediction] = {}
        by_size = sorted(range(len(images)), key=lambda index: images[index].shape)
        for shape, group in itertools.groupby(by_size, key=lambda index: images[index].shape):
            tile = self._tile(shape[0], shape[1])
            for batch in _batches(list(group), 1 if tile else self.batch_size):
                pixels = [images[index] for index in batch]
                run = self._run_tiles(pixels[0], tile) if tile else self._run(pixels)
                done.update(zip(batch, run, strict=True))
        return [done[index] for index in range(len(images))]

    def _tile(self, height: int, width: int) -> int | None:
        """Side of the tiles of an image; None if it runs whole."""
        if self.net.sees_everything:
            return None
        if self.tile_size is None:
            pixels = height * width
            large = pixels > MAX_WHOLE_PIXELS or pixels * len(self.classes) > MAX_SCORES
            return TILE_SIZE if large else None
        return self.tile_size if max(height, width) > self.tile_size else None

    @torch.inference_mode()
    def _run(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Images of equal size, together."""
        score = self._score(images[0][None] if len(images) == 1 else np.stack(images))
        labels, sums = self._choose(score, 0, 0, *images[0].shape[:2])
        num_pixels = labels[0].size
        return [
            Prediction(label, total / num_pixels)
            for label, total in zip(labels, sums.tolist(), strict=True)
        ]

    @torch.inference_mode()
    def _run_tiles(self, image: np.ndarray, tile: int) -> list[Prediction]:
        """One image in tiles; only labels and a sum outlive a tile."""
        height, width, _ = image.shape
        step = self.net.coarsest
        tile, margin = (-(-n // step) * step for n in (tile, self.net.field // 2 + 1))
        label = np.empty((height, width), self._dtype)
        total = 0.0
        for top, left in itertools.product(range(0, height, tile), range(0, width, tile)):
            y, x = max(0, top - margin), max(0, left - margin)
            seen = image[y : top + tile + margin, x : left + tile + margin]
            core = label[top : top + tile, left : left + tile]
            labels, sums = self._choose(self._score(seen[None]), top - y, left - x, *core.shape)
            core[:] = labels[0]
            total += float(sums)
        return [Prediction(label, total / (height * width))]

    def _score(self, pixels: np.ndarray) -> Tensor:
        """Scores ``N x C x h x w`` at the network's stride, of uint8 ``N x H x W x 3``."""
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
    ) -> tuple[np.ndarray, Tensor]:
        """Winning classes in a window, and per image the sum of their probabilities.

        On a CPU the scores of all pixels are never in memory, only those of a band of rows.
        """
        upscore = self.net.upscore
        window = upscore.crop + top, upscore.crop + left, height, width
        num_rows = BAND_ROWS if self.device.type == "cpu" else height
        labels = np.empty((len(score), height, width), self._dtype)
        sums = torch.zeros(len(score), dtype=torch.float64, device=self.device)
        for number, scores in enumerate(upscore.bands(score, *window, num_rows)):
            winner, certain = winners(scores.float())
            sums += certain
            labels[:, number * num_rows : (number + 1) * num_rows] = winner.cpu().numpy()
        return labels, sums

    @property
    def _dtype(self) -> type[np.integer[Any]]:
        return np.uint8 if len(self.classes) <= 256 else np.uint16


def check_images(images: Sequence[np.ndarray]) -> None:
    """Find out whether arrays are RGB images, uint8 ``H x W x 3``.

    Raises:
        ValueError: an array that is no such image.
    """
    for image in images:
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise ValueError(f"an image must be uint8 H x W x 3, found {image.dtype} {image.shape}")


def _batches(indices: list[int], size: int) -> Iterator[list[int]]:
    for start in range(0, len(indices), size):
        yield indices[start : start + size]
