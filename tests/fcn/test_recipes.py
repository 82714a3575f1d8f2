import copy
import math
from typing import Any

import pytest
import torch
from torch.nn import functional

from fcn.model import FCN
from fcn.recipes import RECIPES, TrainConfig, make_optimizer


def test_reference_recipe_doubles_the_rate_of_biases_and_spares_them_decay() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    optimizer = make_optimizer(net, RECIPES["reference"], 1.0, frozenset())
    by_size = {group["params"][0].ndim: group for group in optimizer.param_groups}
    assert (by_size[4]["lr"], by_size[4]["weight_decay"]) == (1.0, 2.7e-9)
    assert (by_size[1]["lr"], by_size[1]["weight_decay"]) == (2.0, 0.0)
    assert {group["momentum"] for group in optimizer.param_groups} == {0.99}


@pytest.mark.parametrize("recipe", ["modern", "reference_alexnet"])
def test_upsampling_kernels_have_no_decay(recipe: str) -> None:
    with torch.device("meta"):
        net = FCN("squeezenet1_1", 2, 8, learnable_upsampling=True)
    optimizer = make_optimizer(net, RECIPES[recipe], 1.0, frozenset())
    names = {parameter: name for name, parameter in net.named_parameters()}
    decays = {names[p]: g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    assert decays["upscore.weight"] == decays["fuse.8.upscore2.weight"] == 0
    assert decays["score_fr.weight"] == RECIPES[recipe].weight_decay
    assert decays["score_fr.bias"] == 0


def test_modern_recipe_warms_up_and_decays_to_nothing() -> None:
    rates = [RECIPES["modern"].rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 2
    assert 0 < rates[-1] < 0.02
    assert {RECIPES["reference"].rate(step, 100) for step in range(100)} == {1.0}


@pytest.mark.parametrize(
    ("schedule", "middle"), [("poly", 0.5**0.9), ("cosine", 0.5), ("fixed", 1.0)]
)
def test_schedules_halfway(schedule: str, middle: float) -> None:
    recipe = TrainConfig(schedule=schedule, warmup=0).effective_recipe()  # type: ignore[arg-type]
    assert recipe.rate(0, 100) == 1
    assert recipe.rate(50, 100) == pytest.approx(middle)


def test_warm_up_rises_to_the_peak_in_its_share_of_the_steps() -> None:
    recipe = TrainConfig(schedule="fixed", warmup=0.1).effective_recipe()
    rates = [recipe.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([n / 10 for n in range(1, 11)])
    assert set(rates[10:]) == {1.0}


def test_settings_take_the_place_of_the_recipe() -> None:
    changes: dict[str, Any] = {
        "optimizer": "sgd", "learning_rate": 0.02, "momentum": 0.8, "weight_decay": 0.0,
        "schedule": "cosine", "warmup": 0.0,
    }  # fmt: skip
    recipe = TrainConfig(**changes).effective_recipe()
    assert {name: getattr(recipe, name) for name in changes} == changes
    assert recipe.augment is RECIPES["modern"].augment
    assert TrainConfig().effective_recipe() == RECIPES["modern"]


def test_the_modern_recipe_is_adamw_with_warm_up_and_polynomial_decay() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.Conv2d(2, 2, 1))
    config = TrainConfig(recipe="modern")
    recipe = config.effective_recipe()
    optimizer = make_optimizer(net, recipe, recipe.learning_rate, frozenset({"0.weight"}))
    assert type(optimizer) is torch.optim.AdamW
    found = {(g["lr"], g["weight_decay"]): len(g["params"]) for g in optimizer.param_groups}
    assert found == {(0.3 * 1e-3, 1e-2): 1, (1e-3, 1e-2): 1, (1e-3, 0.0): 2}
    rises = [(1 + step) / 6 if step < 6 else 1 for step in range(200)]  # 3 % of the steps
    expected = [rise * (1 - step / 200) ** 0.9 for step, rise in enumerate(rises)]
    assert [recipe.rate(step, 200) for step in range(200)] == pytest.approx(expected)


def test_the_reference_recipe_takes_the_steps_of_the_summed_loss() -> None:
    """The release's solver, 1e-10 and 5e-4 of a loss summed over 375 x 500 pixels."""
    recipe, num_pixels = RECIPES["reference"], 375 * 500
    assert recipe.learning_rate == float(f"{1e-10 * num_pixels:.1e}")
    assert recipe.weight_decay == float(f"{5e-4 / num_pixels:.1e}")
    assert (recipe.stage_rate, recipe.schedule) == (1e-12 / 1e-10, "fixed")
    torch.manual_seed(0)
    net = torch.nn.Conv2d(3, 2, 1).double()
    image = 60 * torch.randn(1, 3, 375, 500, dtype=torch.float64)
    label = torch.randint(2, (1, 375, 500))
    moved = []
    for reduction in ("sum", "mean"):
        own = copy.deepcopy(net)
        release: list[dict[str, Any]] = [
            {"params": [own.weight], "lr": 1e-10, "weight_decay": 5e-4},
            {"params": [own.bias], "lr": 2e-10, "weight_decay": 0},
        ]
        optimizer = (
            torch.optim.SGD(release, momentum=0.99)
            if reduction == "sum"
            else make_optimizer(own, recipe, recipe.learning_rate, frozenset())
        )
        for _ in range(3):
            optimizer.zero_grad()
            functional.cross_entropy(own(image), label, reduction=reduction).backward()
            optimizer.step()
        moved.append([own.weight - net.weight, own.bias - net.bias])
    rounding = recipe.learning_rate / (1e-10 * num_pixels)
    for summed, mean in zip(*moved, strict=True):
        assert summed.all()
        torch.testing.assert_close(mean, rounding * summed, rtol=1e-4, atol=0)


def test_the_solver_of_the_authors_alexnet() -> None:
    config = TrainConfig(recipe="reference_alexnet", batch_size=1, accumulate=20)
    recipe = config.effective_recipe()
    assert (recipe.learning_rate, recipe.momentum, recipe.weight_decay) == (1e-4, 0.9, 5e-4)
    assert math.isclose(recipe.rate(99, 100), 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer": "sgd"}, "needs a learning_rate: that of recipe=modern, 0.001, is adamw's"),
        (
            {"optimizer": "adamw", "recipe": "reference"},
            "needs a learning_rate: that of recipe=reference, 1.9e-05, is sgd's",
        ),
        ({"momentum": 0.9}, "momentum is SGD's; the optimizer is adamw"),
        (
            {"backbone": "caffenet"},
            r"torchvision has no ImageNet weights of caffenet; give init='none', .* \.caffemodel",
        ),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(
    changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TrainConfig(**changes)
