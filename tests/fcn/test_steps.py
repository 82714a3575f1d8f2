"""What one step of a training does to the weights, against loops written out by hand."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fcn.checkpoint import Model
from fcn.input import TORCHVISION
from fcn.model import FCN
from fcn.samples import Batch
from fcn.train import Trainer
from fcn.trunks import first_convolution
from fcn.weights import Transplant
from tests.fcn.scenes import CLASSES, squares
from tests.fcn.trainers import settings, trainer, weights

PLAIN: dict[str, Any] = {
    "recipe": "reference", "optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0,
    "learning_rate": 0.01, "schedule": "fixed", "warmup": 0.0, "epochs": 4,
}  # fmt: skip
"""SGD whose step is the gradient times the rate, four times."""

MODERN = {"recipe": "modern"}
TRUNK = tuple(name for name in FCN("squeezenet1_1").state_dict() if name.startswith("trunk."))
HALF = 0.5**0.5


def by_hand(
    net: FCN, batches: Sequence[Batch], rates: Sequence[float], bias: float, trunk: float
) -> dict[str, Tensor]:
    """The weights after a step of plain SGD on each batch, at the rates and factors stated."""
    net.train()
    names, parameters = zip(*net.named_parameters(), strict=True)
    for (images, labels), rate in zip(batches, rates, strict=True):
        scores = net(TORCHVISION.normalise(images))
        loss = functional.cross_entropy(scores, labels.long(), ignore_index=255)
        gradients = torch.autograd.grad(loss, parameters)
        for name, parameter, gradient in zip(names, parameters, gradients, strict=True):
            factor = bias if name.endswith("bias") else 1
            factor *= trunk if name in TRUNK else 1
            parameter.data -= rate * factor * gradient
    return dict(net.state_dict())


@pytest.mark.parametrize(
    ("changes", "transplant", "rates", "bias", "trunk"),
    [
        ({"warmup": 0.75}, {}, [0.01 / 3, 0.02 / 3, 0.01, 0.01], 2, 1),
        ({"schedule": "poly"}, {}, [0.01 * (1 - k / 4) ** 0.9 for k in range(4)], 2, 1),
        ({"schedule": "cosine"}, {}, [0.005 * (1 + c) for c in (1, HALF, 0, -HALF)], 2, 1),
        ({"learning_rate": None}, {}, [1.9e-5] * 4, 2, 1),
        ({"learning_rate": None}, {"from_stride": 16}, [1.9e-7] * 4, 2, 1),
        (MODERN, {"copied": TRUNK}, [0.01] * 4, 1, 0.3),
        (MODERN, {"copied": TRUNK, "from_stride": 16}, [0.01] * 4, 1, 1),
    ],
    ids=["warmup", "poly", "cosine", "recipe", "stage", "transplanted", "refined"],
)
def test_every_step_moves_the_weights_at_its_own_rate(
    changes: dict[str, Any],
    transplant: dict[str, Any],
    rates: list[float],
    bias: float,
    trunk: float,
) -> None:
    done = Transplant(input=TORCHVISION, **transplant)
    training = trainer(settings(**PLAIN | changes), squares(3), transplant=done)
    without_dropout(training.net)
    before, batches = copy.deepcopy(training.net), list(training._loader())
    start = weights(training)
    assert [step.learning_rate for step in training.run()] == pytest.approx(rates)
    found, expected = weights(training), by_hand(before, batches, rates, bias, trunk)
    for name, tensor in expected.items():
        moved, should = found[name] - start[name], tensor - start[name]
        assert should.any() or name in TRUNK
        rounding = 4e-7 * float(tensor.abs().max())
        torch.testing.assert_close(
            moved, should, rtol=1e-3, atol=1e-3 * float(should.abs().max()) + rounding
        )


def without_dropout(net: nn.Module) -> None:
    for layer in net.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)],
)
def test_a_step_computes_in_its_precision_and_keeps_its_weights_in_float32(
    precision: str, dtype: torch.dtype
) -> None:
    training = trainer(settings(precision=precision, epochs=1), squares(3))
    seen: list[torch.dtype] = []
    for layer in (training.net.trunk, training.net.score_fr, training.net):
        layer.register_forward_hook(
            lambda _, given, made: seen.extend(map(dtype_of, (given, made)))
        )
    (step,) = training.run()
    # image -> maps -> ... scores of the coarsest map -> ... scores
    assert seen == [torch.float32, dtype, dtype, dtype, torch.float32, dtype]
    assert not step.skipped
    assert {tensor.dtype for tensor in weights(training).values()} == {torch.float32}


def dtype_of(value: Any) -> torch.dtype:
    """Of the last tensor of a layer's inputs or outputs."""
    if isinstance(value, dict):
        value = tuple(value.values())
    return value[-1].dtype if isinstance(value, tuple) else value.dtype


def test_images_and_weights_of_a_training_have_their_channels_last_in_memory() -> None:
    training = trainer(settings(epochs=1), squares(3))
    name, first = first_convolution(training.net.trunk)
    seen: list[Tensor] = []
    first.register_forward_hook(lambda _, given, made: seen.extend((*given, made)))
    list(training.run())
    image, cells = seen
    assert image.shape == (3, 3, 32, 32), name
    for tensor in (image, cells, first.weight):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert not tensor.is_contiguous()


def test_at_once_all_strides_are_trained_together_and_the_scales_stay() -> None:
    """The finer maps are scaled, so their scores move by no more than those of the coarsest."""
    config = settings(**PLAIN | {"at_once": True, "stride": 4, "epochs": 6})
    torch.manual_seed(0)
    net = FCN("squeezenet1_1", len(CLASSES), 4, at_once=True)
    training = Trainer(
        Model(net, CLASSES, TORCHVISION), squares(3), config,
        class_pixels=[900, 400], transplant=Transplant(input=TORCHVISION),
    )  # fmt: skip
    losses = [step.loss for step in training.run()]
    assert losses[-1] < losses[0]
    assert [fuse.scale for fuse in net.fuse.values()] == [0.01, 0.0001]
    scores = [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]
    sizes = [float(layer.weight.detach().abs().max()) for layer in scores]
    assert sizes[0] > sizes[1] > sizes[2] > 0
