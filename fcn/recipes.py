"""Training settings, and the named recipes behind them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from fcn.device import Device, Precision
from fcn.trunks import TRUNKS, Backbone

Pixels = Annotated[int, Field(ge=1)]


class TrainConfig(BaseModel):
    """How a network is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbone: Backbone = Field(
        "vgg16",
        description="Classifier that is cast fully convolutional. squeezenet1_1 and resnet18 "
        "are light enough for two CPU cores.",
    )
    stride: Literal[4, 8, 16, 32] = Field(
        8,
        description="Finest fused stride: FCN-8s, FCN-16s or FCN-32s of the paper, or 4, one skip "
        "more, for thin things (SqueezeNet and ResNet).",
    )
    init: str = Field(
        "imagenet",
        description='"imagenet" (downloads torchvision\'s weights), "none" (from scratch), or the '
        "URL of a coarser model of ours or of SqueezeNet's ImageNet weights (.npz).",
    )
    recipe: Literal["modern", "reference"] = Field(
        "modern",
        description="modern: AdamW, warm-up, polynomial decay, augmentation. reference: the "
        "authors' SGD with momentum 0.99 and a fixed learning rate, no augmentation.",
    )
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; empty takes the recipe's."
    )
    epochs: int = Field(30, ge=1, description="Passes over the training split.")
    batch_size: int = Field(8, ge=1, description="Images, or crops, in one step.")
    crop_size: tuple[Pixels, Pixels] | None = Field(
        None,
        description="Height and width of random training crops, in pixels; empty trains on whole "
        "images, padded to the largest of their batch.",
    )
    class_weights: Literal["none", "median_frequency"] = Field(
        "none", description="Weigh the loss of each class by how rare its pixels are."
    )
    learnable_upsampling: bool = Field(
        False, description="Train the bilinear kernels of the transposed convolutions."
    )
    evaluate_every: int = Field(
        5, ge=1, description="Epochs between evaluations on the val split; the last always is."
    )
    device: Device = Field(
        "auto", description='"auto" (GPU if there is one), "cpu", "cuda", "cuda:1".'
    )
    precision: Precision = Field("auto", description="auto is bf16 on a GPU, fp32 on a CPU.")
    num_workers: int = Field(
        1, ge=0, description="Processes that decode and augment; 0 does it in the training process."
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Seed of the weights, the order and the augmentation."
    )
    resume: bool = Field(
        True, description="Go on from the state in the run's folder; otherwise start over."
    )

    @model_validator(mode="after")
    def _check_stride(self) -> Self:
        strides = list(TRUNKS[self.backbone].nodes)
        if self.stride not in strides:
            raise ValueError(f"{self.backbone} has strides {strides}, not {self.stride}")
        return self

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the weights, as JSON: two runs that share them are the same.

        Where it runs, how often it is scored, and where `init` was read from are left out.
        """
        left_out = {"device", "num_workers", "resume", "evaluate_every", "init"}
        return self.model_dump(mode="json", exclude=left_out)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, schedule and augmentation that belong together.

    Attributes:
        learning_rate: Peak learning rate of a mean loss.
        pretrained_rate: Factor on the learning rate of transplanted layers.
        stage_rate: Factor on the learning rate for each stage from a coarser FCN.
        weight_decay: Of weights; biases and normalisations have none.
        bias_rate: Factor on the learning rate of biases.
        warmup: Share of the steps over which the learning rate rises.
        power: Of the polynomial decay; 0 keeps the learning rate.
        augment: Vary scale, side and colours.
    """

    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    pretrained_rate: float
    stage_rate: float
    weight_decay: float
    bias_rate: float
    warmup: float
    power: float
    augment: bool

    def rate(self, step: int, num_steps: int) -> float:
        """Factor on the learning rate at ``step`` of ``num_steps``, counted from 0."""
        warmup = max(1, round(self.warmup * num_steps))
        rise = min(1.0, (step + 1) / warmup) if self.warmup else 1.0
        return float(rise * (1 - step / num_steps) ** self.power)


RECIPES: Mapping[str, Recipe] = {
    "modern": Recipe(
        optimizer="adamw",
        learning_rate=1e-3,
        pretrained_rate=0.3,
        stage_rate=0.3,
        weight_decay=1e-2,
        bias_rate=1.0,
        warmup=0.03,
        power=0.9,
        augment=True,
    ),
    # The release sums its loss over the pixels of one image: 1e-10, divided by 100 a stage.
    # These are the rates of a mean loss at 375 x 500 that make the same steps; the decay is
    # the release's 5e-4 over the 187,500 pixels.
    "reference": Recipe(
        optimizer="sgd",
        learning_rate=1.9e-5,
        pretrained_rate=1.0,
        stage_rate=1e-2,
        weight_decay=2.7e-9,
        bias_rate=2.0,
        warmup=0.0,
        power=0.0,
        augment=False,
    ),
}

MOMENTUM = 0.99
"""Momentum of the authors' released solvers."""


def make_optimizer(
    net: nn.Module, recipe: Recipe, learning_rate: float, pretrained: frozenset[str]
) -> torch.optim.Optimizer:
    """The recipe's optimizer; biases and normalisations (one-dimensional) have no decay.

    Args:
        net: The network.
        recipe: Its optimizer, factors and decay.
        learning_rate: Peak rate of new layers' weights.
        pretrained: Names of the parameters at the recipe's rate for pretrained ones.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        rate = learning_rate
        rate *= recipe.pretrained_rate if name in pretrained else 1.0
        rate *= recipe.bias_rate if name.endswith("bias") else 1.0
        decay = recipe.weight_decay if parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=MOMENTUM)
    return torch.optim.AdamW(settings)
