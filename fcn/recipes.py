"""Training settings, and the named recipes behind them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import nn

from fcn.device import Precision
from fcn.trunks import TRUNKS, Backbone
from fcn.upsample import Upscore

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
"""Names of devices in settings: auto (a GPU where there is one), cpu, cuda, cuda:1, …"""

Pixels = Annotated[int, Field(ge=1, le=1 << 14)]
OptimizerName = Literal["sgd", "adamw"]
RecipeName = Literal["modern", "reference", "reference_alexnet"]
Schedule = Literal["poly", "cosine", "fixed"]

POWER = 0.9
"""Of the polynomial decay, as DeepLab has it (Chen et al., TPAMI 2018, section 4.1)."""


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
        "more, for thin things (SqueezeNet, ResNet and RegNet).",
    )
    init: str = Field(
        "imagenet",
        description='"imagenet" (downloads torchvision\'s weights), "none" (from scratch), or the '
        "URL of a coarser model of ours, of torchvision's ImageNet weights (.pth or safetensors), "
        "of an FCN of the authors or its VGG16 or CaffeNet classifier (.caffemodel), or of "
        "SqueezeNet's ImageNet weights (.npz).",
    )
    init_classes: Literal["same", "by_name"] = Field(
        "same",
        description="When init is a model of ours: same asks for the same classes; by_name keeps "
        "the scores of classes with the same name and starts the others at zero.",
    )
    at_once: bool = Field(
        False,
        description="Scale the finer maps before they are scored, as the authors do to train all "
        "strides at once instead of one after another.",
    )
    recipe: RecipeName = Field(
        "modern",
        description="modern: AdamW, warm-up, polynomial decay, augmentation. reference: the "
        "authors' SGD with momentum 0.99 and a fixed learning rate, no augmentation; give it "
        "batch_size 1. reference_alexnet: theirs for AlexNet, momentum 0.9; give it batch_size 1 "
        "and accumulate 20.",
    )
    learning_rate: float | None = Field(
        None, gt=0, le=1e30, description="Peak learning rate; empty takes the recipe's."
    )
    optimizer: OptimizerName | None = Field(
        None,
        description="Empty takes the recipe's; another one needs a learning_rate of its own.",
    )
    momentum: float | None = Field(
        None, ge=0, lt=1, description="Momentum of SGD; empty takes the recipe's."
    )
    weight_decay: float | None = Field(
        None,
        ge=0,
        le=10,
        description="Decay of weights; biases, normalisations and upsampling kernels have none. "
        "Empty takes the recipe's.",
    )
    schedule: Schedule | None = Field(
        None,
        description="How the learning rate falls, step by step: poly (power 0.9) and cosine to "
        "nothing at the end, fixed not at all; empty takes the recipe's.",
    )
    warmup: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="Share of the steps over which the learning rate rises; empty takes the "
        "recipe's.",
    )
    epochs: int = Field(30, ge=1, le=100_000, description="Passes over the training split.")
    batch_size: int = Field(
        8,
        ge=1,
        le=1024,
        description="Images, or crops, that go through the network together; with several "
        "processes, over all of them.",
    )
    num_processes: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Training processes on this machine, as torchrun starts them: each takes its "
        "share of every batch, and the steps are those of one. Empty is one for each GPU (a "
        "device cuda:1 has one), and one on a CPU.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        le=1024,
        description="Batches in one step: their gradients make that of one large batch, a mean "
        "over all its labelled pixels. Batch normalisation still sees each batch alone.",
    )
    ema_decay: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Decay of a moving average of the weights (0.999, say), which is then what "
        "is evaluated and saved; empty keeps none.",
    )
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
    late_fusion: bool = Field(
        False,
        exclude_if=lambda given: not given,
        description="Give the bands a trunk of their own: the scores of both are averaged. "
        "Otherwise one trunk sees the colours and the bands as channels of one image.",
    )
    evaluate_every: int = Field(
        5,
        ge=1,
        le=100_000,
        description="Epochs between evaluations on the val split; the last always is.",
    )
    device: Device = Field(
        "auto", description='"auto" (GPU if there is one), "cpu", "cuda", "cuda:1".'
    )
    precision: Precision = Field(
        "auto",
        description="auto is bf16 on a GPU, fp32 on a CPU. fp16 scales the loss, and skips the "
        "steps whose gradient overflows all the same.",
    )
    compile: bool = Field(
        False,
        description="Train through torch.compile: minutes at the start, faster steps after. "
        "Worth it with crops, which all have one size.",
    )
    deterministic: bool = Field(
        False,
        description="Have a GPU compute the same bits every time, more slowly. A CPU does anyway.",
    )
    num_workers: int = Field(
        1,
        ge=0,
        le=256,
        description="Processes that decode and augment, for each training process; 0 does it in "
        "the training process.",
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

    @model_validator(mode="after")
    def _check_init(self) -> Self:
        if self.init == "imagenet" and TRUNKS[self.backbone].weights is None:
            raise ValueError(
                f"torchvision has no ImageNet weights of {self.backbone}; give init='none', or "
                "the URL of a file, such as its .caffemodel"
            )
        return self

    @model_validator(mode="after")
    def _check_processes(self) -> Self:
        count = self.num_processes or 1
        if count > self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} images cannot be dealt out to {count} processes; "
                f"give a batch_size of at least {count}"
            )
        if count > 1 and self.device.startswith("cuda:"):
            raise ValueError(
                f"{self.device} is one GPU, and {count} processes need one each; give device=cuda"
            )
        return self

    @model_validator(mode="after")
    def _check_optimizer(self) -> Self:
        recipe = RECIPES[self.recipe]
        optimizer = self.optimizer or recipe.optimizer
        if self.momentum is not None and optimizer != "sgd":
            raise ValueError(f"momentum is SGD's; the optimizer is {optimizer}")
        if optimizer != recipe.optimizer and self.learning_rate is None:
            raise ValueError(
                f"optimizer={optimizer} needs a learning_rate: that of recipe={self.recipe}, "
                f"{recipe.learning_rate:g}, is {recipe.optimizer}'s"
            )
        return self

    def effective_recipe(self) -> "Recipe":
        """The named recipe, with what these settings put in the place of its own."""
        names = ("learning_rate", "optimizer", "momentum", "weight_decay", "schedule", "warmup")
        own = {name: getattr(self, name) for name in names}
        changes = {name: value for name, value in own.items() if value is not None}
        return replace(RECIPES[self.recipe], **changes)

    def decisive(self) -> dict[str, Any]:
        """The settings that decide the weights, as JSON: two runs that share them are the same.

        Where it runs, how often it is scored, and where `init` was read from are left out.
        """
        left_out = {
            "device", "num_processes", "num_workers", "resume", "evaluate_every", "init"
        }  # fmt: skip
        return self.model_dump(mode="json", exclude=left_out)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Optimizer, schedule and augmentation that belong together.

    Attributes:
        learning_rate: Peak learning rate of a mean loss.
        momentum: Of SGD.
        pretrained_rate: Factor on the learning rate of transplanted layers.
        stage_rate: Factor on the learning rate for each stage finer than the coarsest.
        weight_decay: Of weights; biases, normalisations and upsampling kernels have none.
        bias_rate: Factor on the learning rate of biases.
        warmup: Share of the steps over which the learning rate rises.
        schedule: How the learning rate falls, from the first step on, the rise times the fall.
        augment: Vary scale, side and colours.
    """

    optimizer: OptimizerName
    momentum: float
    learning_rate: float
    pretrained_rate: float
    stage_rate: float
    weight_decay: float
    bias_rate: float
    warmup: float
    schedule: Schedule
    augment: bool

    def rate(self, step: int, num_steps: int) -> float:
        """Factor on the learning rate at ``step`` of ``num_steps``, counted from 0."""
        warmup = max(1, round(self.warmup * num_steps))
        rise = min(1.0, (step + 1) / warmup) if self.warmup else 1.0
        done = step / num_steps
        fall = {
            "poly": math.pow(1 - done, POWER),
            "cosine": (1 + math.cos(math.pi * done)) / 2,
            "fixed": 1.0,
        }
        return rise * fall[self.schedule]


RECIPES: Mapping[str, Recipe] = {
    "modern": Recipe(
        optimizer="adamw",
        momentum=0.9,
        learning_rate=1e-3,
        pretrained_rate=0.3,
        stage_rate=0.3,
        weight_decay=1e-2,
        bias_rate=1.0,
        warmup=0.03,
        schedule="poly",
        augment=True,
    ),
    # The release sums its loss over the pixels of one image: 1e-10, divided by 100 a stage.
    # These are the rates of a mean loss at 375 x 500 that make the same steps; the decay is
    # the release's 5e-4 over the 187,500 pixels.
    "reference": Recipe(
        optimizer="sgd",
        momentum=0.99,
        learning_rate=1.9e-5,
        pretrained_rate=1.0,
        stage_rate=1e-2,
        weight_decay=2.7e-9,
        bias_rate=2.0,
        warmup=0.0,
        schedule="fixed",
        augment=False,
    ),
    # Solver of the authors' voc-fcn-alexnet: a mean loss, 20 images accumulated.
    "reference_alexnet": Recipe(
        optimizer="sgd",
        momentum=0.9,
        learning_rate=1e-4,
        pretrained_rate=1.0,
        stage_rate=1e-2,
        weight_decay=5e-4,
        bias_rate=2.0,
        warmup=0.0,
        schedule="fixed",
        augment=False,
    ),
}


def make_optimizer(
    net: nn.Module, recipe: Recipe, learning_rate: float, pretrained: frozenset[str]
) -> torch.optim.Optimizer:
    """The recipe's optimizer, with one group for each learning rate and decay.

    Biases and normalisations (one-dimensional) have no decay. Nor have upsampling kernels: they
    interpolate, and smaller ones would only scale the scores down.

    Args:
        net: The network.
        recipe: Its optimizer, factors and decay.
        learning_rate: Peak rate of new layers' weights.
        pretrained: Names of the parameters at the recipe's rate for pretrained ones.
    """
    upscores = {f"{name}.weight" for name, m in net.named_modules() if isinstance(m, Upscore)}
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in net.named_parameters():
        rate = learning_rate
        rate *= recipe.pretrained_rate if name in pretrained else 1.0
        rate *= recipe.bias_rate if name.endswith("bias") else 1.0
        decays = parameter.ndim > 1 and name not in upscores
        decay = recipe.weight_decay if decays else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    settings = [
        {"params": parameters, "lr": rate, "weight_decay": decay}
        for (rate, decay), parameters in groups.items()
    ]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(settings, momentum=recipe.momentum)
    return torch.optim.AdamW(settings)
