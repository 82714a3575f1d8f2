"""Collections of small images, and models that segment them, for the tests of prediction."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

import fcn
from fcn.input import TORCHVISION
from tasks import stores
from tasks.engine import segment
from tasks.manifest import Manifest, ModelCard, RunCard, read, write
from tasks.part_file import Row
from tasks.predict_config import PredictConfig, run_digest
from tasks.seconds import Seconds

CLASSES = fcn.Classes(("dark", "medium", "bright"), ((0, 0, 0), (128, 128, 0), (0, 128, 255)))


class Brightness:
    """A segmenter without a network: three classes by brightness, so that masks can be foretold."""

    classes = CLASSES

    side_by_side = True

    def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
        """Class 0, 1 or 2 of each pixel, by thirds of the brightness."""
        return [
            fcn.Prediction((image.mean(axis=2) // 86).astype(np.uint8), confidence=0.5)
            for image in images
        ]


FURTHER_CLASSES = {"side": fcn.Classes.named(["left", "right"])}


class TwoHeads:
    """`Brightness` with a second task: the left and the right half of an image."""

    classes = CLASSES
    side_by_side = Brightness.side_by_side

    def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
        """Brightness of each pixel, and which half it is in."""
        halves = [np.indices(i.shape[:2])[1] >= i.shape[1] // 2 for i in images]
        return [
            replace(found, further={"side": fcn.Prediction(half.astype(np.uint8), 0.25)})
            for found, half in zip(Brightness().predict(images), halves, strict=True)
        ]


def pixels(rng: np.random.Generator, height: int = 12, width: int = 16) -> np.ndarray:
    """Blocks of random colours, uint8 ``height x width x 3``."""
    blocks = rng.integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return blocks.repeat(4, axis=0).repeat(4, axis=1)[:height, :width]


def encoded(array: np.ndarray, image_format: str = "PNG") -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, image_format)
    return buffer.getvalue()


def put(prefix: str, objects: Mapping[str, bytes]) -> None:
    """Write objects, by key, below a prefix."""
    for key, data in objects.items():
        stores.write_bytes(f"{prefix}/{key}", data)


def save_model(path: Path, seed: int = 0, bias: float = 0.0) -> str:
    """A small FCN with random weights and three classes; its URL.

    With a large bias, the same for all classes, scores are rounded so coarsely that masks show
    in which order sums were made.
    """
    torch.manual_seed(seed)
    net = fcn.FCN("squeezenet1_1", len(CLASSES), 8)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():  # score layers
            torch.nn.init.normal_(layer.weight, std=0.1)
            torch.nn.init.constant_(layer.bias, bias)
    fcn.save(fcn.Model(net, CLASSES, TORCHVISION), path)
    return str(path)


def planned(
    output_url: str,
    entries: Sequence[stores.Entry],
    config: PredictConfig,
    *,
    run: int = 0,
    model_digest: str = "0" * 64,
    further_classes: Mapping[str, fcn.Classes] | None = None,
) -> Manifest:
    """A written manifest of a run with `Brightness`, or `TwoHeads`, in the place of a model."""
    model = ModelCard(
        url="model",
        size=1,
        etag=model_digest,
        digest=model_digest,
        classes=CLASSES.to_json(),
        ignore_index=255,
        further_classes={name: c.to_json() for name, c in (further_classes or {}).items()},
    )
    card = RunCard(
        run=run,
        run_digest=run_digest(model_digest, config),
        collection_url="collection",
        images_per_shard=config.images_per_shard,
        model=model,
    )
    write(output_url, card, entries)
    return read(output_url, run)


def rows_of(prefix: str, predictor: Any = None, **settings: Any) -> dict[str, Row]:
    """The rows of everything below a prefix, by key."""
    entries = list(stores.list_entries(prefix))
    rows = segment(entries, predictor or Brightness(), PredictConfig(**settings), seconds=Seconds())
    assert [row.entry for row in rows] == entries
    return {row.entry.key: row for row in rows}
