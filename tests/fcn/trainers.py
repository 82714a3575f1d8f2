"""Trainers of small networks, and what is compared of them."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fcn.checkpoint import Model, read_safetensors
from fcn.classes import Classes
from fcn.input import TORCHVISION
from fcn.masks import decode_mask, encode_mask
from fcn.model import FCN
from fcn.recipes import TrainConfig
from fcn.train import Trainer
from fcn.weights import Transplant
from tests.fcn.scenes import CLASSES, Pair, squares


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "backbone": "squeezenet1_1", "init": "none", "epochs": 2, "batch_size": 3,
        "crop_size": (32, 32), "num_workers": 0,
    }  # fmt: skip
    return TrainConfig(**(defaults | changes))


def trainer(
    config: TrainConfig,
    samples: Sequence[Pair],
    state: bytes | None = None,
    *,
    classes: Classes = CLASSES,
    **changes: Any,
) -> Trainer:
    torch.manual_seed(config.seed)
    net = FCN(
        config.backbone,
        len(classes),
        config.stride,
        learnable_upsampling=config.learnable_upsampling,
    )
    options: dict[str, Any] = {
        "class_pixels": [900, 400],
        "transplant": Transplant(input=TORCHVISION),
    }
    return Trainer(
        Model(net, classes, TORCHVISION), samples, config, state=state, **(options | changes)
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def assert_same_state(left: bytes, right: bytes) -> None:
    """Equal tensors and metadata; their order in the file is the library's."""
    (tensors, metadata), (other_tensors, other_metadata) = map(read_safetensors, (left, right))
    assert metadata == other_metadata
    assert_equal(tensors, other_tensors)


def killed_again_and_again(config: TrainConfig, size: int, folder: Path) -> bytes:
    """The state at the end of a training in ``size`` processes, see `tests.fcn.killed`."""
    command = [sys.executable, "-m", "tests.fcn.killed", config.model_dump_json()]
    run = subprocess.run(
        [*command, str(folder), str(size)], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 5  # kills
    return (folder / "state").read_bytes()


def relabelled(pair: Pair, value: int, rows: int = 40) -> Pair:
    """The pair with ``value`` in the first rows of its label map."""
    label = decode_mask(pair.label).copy()
    label[:rows] = value
    return replace(pair, label=encode_mask(label, CLASSES.palette))


def half(label: bytes) -> bytes:
    """A second task: what is below the middle of the image."""
    shape = decode_mask(label).shape
    return encode_mask((np.indices(shape)[0] >= shape[0] // 2).astype(np.uint8))


@dataclass(frozen=True)
class TwoLabels:
    """A square with a second label map; every fourth is not labelled for the second task."""

    pair: Pair
    key: str

    @property
    def image(self) -> bytes:
        return self.pair.image

    @property
    def label(self) -> bytes:
        return self.pair.label

    @property
    def further_labels(self) -> dict[str, bytes | None]:
        return {"half": None if self.key.endswith("0") else half(self.pair.label)}


def two_headed(
    config: TrainConfig,
    state: bytes | None = None,
    pairs: Sequence[Pair] | None = None,
    **changes: Any,
) -> Trainer:
    torch.manual_seed(0)
    net = FCN(config.backbone, 4, config.stride, heads={"main": 2, "half": 2})
    further = {"half": Classes.named(["above", "below"])}
    samples = [TwoLabels(pair, f"{i % 4}") for i, pair in enumerate(pairs or squares(24))]
    return Trainer(
        Model(net, CLASSES, TORCHVISION, further_classes=further),
        samples,
        config,
        class_pixels=[900, 400, 500, 500],
        transplant=Transplant(input=TORCHVISION),
        state=state,
        **changes,
    )
