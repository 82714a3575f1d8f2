"""What one step of a training does to the weights, against loops written out by hand."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fcn.input import TORCHVISION
from fcn.model import FCN
from fcn.samples import Batch
from fcn.weights import Transplant
from tests.fcn.scenes import squares
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
