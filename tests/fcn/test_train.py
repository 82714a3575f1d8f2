import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fcn.checkpoint import Model
from fcn.errors import CheckpointError, TrainingError
from fcn.evaluate import score_samples
from fcn.input import TORCHVISION
from fcn.metrics import Scores
from fcn.model import FCN
from fcn.predict import Predictor
from fcn.recipes import RECIPES, TrainConfig, make_optimizer
from fcn.train import Step, Trainer, num_stages, transplant_of
from fcn.weights import Transplant
from tests.fcn.scenes import CLASSES, Pair, squares


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "backbone": "squeezenet1_1", "init": "none", "epochs": 2, "batch_size": 3,
        "crop_size": (32, 32), "num_workers": 0,
    }  # fmt: skip
    return TrainConfig(**(defaults | changes))


def trainer(
    config: TrainConfig, samples: Sequence[Pair], state: bytes | None = None, **changes: Any
) -> Trainer:
    torch.manual_seed(config.seed)
    net = FCN(config.backbone, len(CLASSES), config.stride)
    options: dict[str, Any] = {
        "class_pixels": [900, 400],
        "transplant": Transplant(input=TORCHVISION),
    }
    return Trainer(
        Model(net, CLASSES, TORCHVISION), samples, config, state=state, **(options | changes)
    )


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.net.state_dict().items()}


def assert_equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_training_learns() -> None:
    samples = squares(24)
    config = settings(backbone="resnet18", epochs=8, batch_size=4, crop_size=None)
    training = trainer(config, samples)
    losses = [step.loss for step in training.run()]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)  # zero scores: every class as likely
    scored = score_samples(Predictor(training.model), squares(6, seed=1))
    scores = Scores(np.sum([sample.confusion for sample in scored], axis=0))
    assert scores.mean_iu > 0.8


@pytest.mark.parametrize("stop", [1, 4, 7])
@pytest.mark.parametrize("recipe", ["modern", "reference"])
def test_a_resumed_training_ends_bit_identical(stop: int, recipe: str) -> None:
    samples = squares(10)
    config = settings(recipe=recipe)
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


def test_workers_change_nothing() -> None:
    samples = squares(6)
    results = []
    for num_workers in (0, 2):
        training = trainer(settings(num_workers=num_workers, epochs=1), samples)
        list(training.run())
        results.append(weights(training))
    assert_equal(*results)


def test_every_sample_is_seen_once_an_epoch() -> None:
    training = trainer(settings(epochs=3, batch_size=4), squares(10))
    places = [place for batch in training.batches() for place in batch]
    assert sorted(places) == [(epoch, sample) for epoch in range(3) for sample in range(10)]
    assert places[:10] != sorted(places[:10])


def test_steps_tell_where_the_training_is() -> None:
    steps = list(trainer(settings(batch_size=4), squares(6)).run())
    assert [step.step for step in steps] == [1, 2, 3]
    assert [step.epoch for step in steps] == [0, 1, 2]
    assert [step.ends_epoch for step in steps] == [False, True, True]
    assert all(isinstance(step, Step) and 0 <= step.waited <= step.seconds for step in steps)


def test_whole_images_of_different_sizes_share_a_batch() -> None:
    samples = [*squares(2, (30, 60)), *squares(2, (50, 24))]
    (first, *_) = trainer(settings(crop_size=None, batch_size=4), samples).run()
    assert math.isfinite(first.loss)


def test_padding_is_ignored() -> None:
    batch = trainer(settings(crop_size=None), squares(1))._samples
    small, large = torch.ones(3, 4, 5, dtype=torch.uint8), torch.ones(3, 6, 3, dtype=torch.uint8)
    images, labels = batch.collate(
        [(small, torch.zeros(4, 5).long()), (large, torch.zeros(6, 3).long())]
    )
    assert images.shape == (2, 3, 6, 5)
    assert labels[0, 4:].eq(255).all()
    assert labels[1, :, 3:].eq(255).all()
    assert labels.eq(0).sum() == 4 * 5 + 6 * 3


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


def test_what_does_not_decide_the_weights_may_change_between_states() -> None:
    samples = squares(4)
    state = trainer(settings(), samples).state()
    trainer(settings(evaluate_every=7, num_workers=1, init="elsewhere"), samples, state)


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    training = trainer(settings(learning_rate=1e30, recipe="reference"), squares(6))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; .*below 1e\+30"):
        list(training.run())


def test_batch_of_ignored_pixels_changes_no_statistic_of_the_loss() -> None:
    blank = [Pair(pair.image, blanked(pair.label)) for pair in squares(3)]
    (step,) = trainer(settings(epochs=1), blank).run()
    assert step.loss == 0


def blanked(label: bytes) -> bytes:
    from fcn.masks import decode_mask, encode_mask

    return encode_mask(np.full_like(decode_mask(label), 255), CLASSES.palette)


def test_a_training_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        trainer(settings(), [])


def test_a_backbone_without_the_stride_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"squeezenet1_1 has strides \[4, 8, 16\], not 32"):
        settings(stride=32)


def test_reference_recipe_doubles_the_rate_of_biases_and_spares_them_decay() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1))
    optimizer = make_optimizer(net, RECIPES["reference"], 1.0, frozenset())
    by_size = {group["params"][0].ndim: group for group in optimizer.param_groups}
    assert (by_size[4]["lr"], by_size[4]["weight_decay"]) == (1.0, 2.7e-9)
    assert (by_size[1]["lr"], by_size[1]["weight_decay"]) == (2.0, 0.0)


def test_a_stage_divides_the_learning_rate_by_a_hundred() -> None:
    rates = []
    for from_stride in (None, 16):
        transplant = Transplant(input=TORCHVISION, from_stride=from_stride)
        config = settings(recipe="reference", epochs=1)
        (step, *_) = trainer(config, squares(3), transplant=transplant).run()
        rates.append(step.learning_rate)
    assert rates[1] == pytest.approx(rates[0] / 100)
    assert [num_stages(8, s) for s in (None, 8, 16, 32)] == [0, 0, 1, 2]


def test_modern_recipe_warms_up_and_decays_to_nothing() -> None:
    rates = [RECIPES["modern"].rate(step, 100) for step in range(100)]
    assert rates.index(max(rates)) == 2
    assert 0 < rates[-1] < 0.02
    assert {RECIPES["reference"].rate(step, 100) for step in range(100)} == {1.0}
