"""A training goes on from its state as if it had never stopped."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from fcn.checkpoint import read_safetensors
from fcn.errors import CheckpointError, TrainingError
from fcn.input import TORCHVISION
from fcn.training_state import pack, transplant_of
from fcn.weights import Transplant
from tests.fcn.scenes import squares
from tests.fcn.trainers import (
    assert_equal,
    assert_same_state,
    killed_again_and_again,
    settings,
    trainer,
    two_headed,
    weights,
)


@pytest.mark.parametrize("stop", [1, 4])
@pytest.mark.parametrize(
    "changes",
    [
        {"recipe": "reference"},
        {"ema_decay": 0.9},
        {"accumulate": 2, "batch_size": 2, "schedule": "cosine"},
        {"optimizer": "sgd", "momentum": 0.5, "learning_rate": 0.01, "schedule": "fixed"},
        {"precision": "fp16", "batch_size": 4},
        {"precision": "bf16", "batch_size": 4},
    ],
)
def test_a_resumed_training_ends_bit_identical(stop: int, changes: dict[str, Any]) -> None:
    samples = squares(10)
    config = settings(**changes)
    whole = trainer(config, samples)
    steps = list(whole.run())

    first = trainer(config, samples)
    for step in first.run():
        if step.step == stop:
            break
    state = first.state()
    second = trainer(config, samples, state)
    rest = list(second.run())

    assert [step.step for step in rest] == list(range(stop + 1, len(steps) + 1))
    assert [step.loss for step in rest] == [step.loss for step in steps[stop:]]
    assert_equal(weights(whole), weights(second))
    assert_equal(whole.model.net.state_dict(), second.model.net.state_dict())
    assert_same_state(whole.state(), second.state())


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 4, "ema_decay": 0.9},
        {"epochs": 6, "batch_size": 2, "accumulate": 2, "schedule": "cosine"},
        {"epochs": 4, "recipe": "reference", "class_weights": "median_frequency"},
    ],
)
def test_a_training_killed_again_and_again_ends_bit_identical(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """Real processes, SIGKILL at random moments, whole states left by renaming."""
    config = settings(**changes)
    whole = trainer(config, squares(10))
    list(whole.run())
    assert_same_state(killed_again_and_again(config, 1, tmp_path), whole.state())


def test_a_state_of_another_training_is_refused() -> None:
    samples = squares(4)
    state = trainer(settings(), samples).state()
    with pytest.raises(CheckpointError, match="the state is of another training"):
        trainer(settings(seed=1), samples, state)
    with pytest.raises(CheckpointError, match="the state is of another training"):
        trainer(settings(), squares(5), state)


def test_a_state_knows_where_the_first_weights_came_from() -> None:
    first = Transplant(input=TORCHVISION, copied=("score_fr.weight",), from_stride=16)
    state = trainer(settings(), squares(4), transplant=first).state()
    assert transplant_of(state) == first
    with pytest.raises(CheckpointError, match="not the state of a training"):
        transplant_of(save({"weight": torch.zeros(1)}))


def test_a_state_of_other_groups_of_the_optimizer_is_taken_up() -> None:
    """Such as of a version that had upsampling kernels among the weights that decay."""
    samples, config = squares(1), settings(learnable_upsampling=True, stride=16)
    training = trainer(config, samples)
    next(training.run())
    older = torch.optim.AdamW(training.net.parameters())
    older.state.update(training._optimizer.state)
    _, metadata = read_safetensors(training.state())
    state = pack([(training.net, "net.")], older, metadata)
    resumed = trainer(config, samples, state)
    assert_same_state(resumed.state(), training.state())


def test_what_does_not_decide_the_weights_may_change_between_states() -> None:
    samples = squares(4)
    state = trainer(settings(), samples).state()
    trainer(settings(evaluate_every=7, num_workers=1, init="elsewhere"), samples, state)


def test_weights_that_are_not_finite_are_never_a_state() -> None:
    training = trainer(settings(), squares(6))
    with torch.no_grad():
        training.net.score_fr.weight[0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"1 of \d+ weights are not finite .*score_fr\.weight"):
        training.state()


def test_a_resumed_training_of_two_heads_ends_with_the_same_weights() -> None:
    whole = two_headed(settings(epochs=1, batch_size=8))
    list(whole.run())
    begun = two_headed(settings(epochs=1, batch_size=8))
    next(begun.run())
    resumed = two_headed(settings(epochs=1, batch_size=8), begun.state())
    list(resumed.run())
    assert_equal(weights(whole), weights(resumed))
