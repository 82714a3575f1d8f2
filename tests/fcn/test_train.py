import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fcn.checkpoint import Model
from fcn.classes import Classes
from fcn.errors import FcnError, LabelError, TrainingError, TruncatedImage
from fcn.evaluate import score_samples, score_split
from fcn.input import TORCHVISION
from fcn.masks import encode_mask
from fcn.metrics import Scores
from fcn.model import FCN
from fcn.predict import Predictor
from fcn.train import MAX_SKIPS, Step, Trainer, num_stages
from fcn.weights import Transplant
from tests.fcn.scenes import Pair, ReadBy, squares
from tests.fcn.trainers import (
    TwoLabels,
    assert_equal,
    relabelled,
    settings,
    trainer,
    two_headed,
    weights,
)


def test_training_learns() -> None:
    samples = squares(24)
    config = settings(backbone="resnet18", epochs=8, batch_size=4, crop_size=None)
    training = trainer(config, samples)
    losses = [step.loss for step in training.run()]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)  # zero scores: every class as likely
    scored = score_samples(Predictor(training.model), squares(6, seed=1))
    scores = Scores(np.sum([sample.confusion for sample in scored], axis=0))
    assert scores.mean_iu > 0.8


def test_workers_change_nothing(tmp_path: Path) -> None:
    results = []
    for num_workers in (0, 2):
        folder = tmp_path / str(num_workers)
        folder.mkdir()
        samples = [ReadBy(pair, folder) for pair in squares(6)]
        training = trainer(settings(num_workers=num_workers, epochs=1), samples)
        list(training.run())
        results.append(weights(training))
        readers = {int(path.name) for path in folder.iterdir()}
        assert readers == {os.getpid()} if num_workers == 0 else os.getpid() not in readers
        assert len(readers) == max(1, num_workers)
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


def test_a_loss_that_is_not_finite_stops_the_training() -> None:
    training = trainer(settings(learning_rate=1e30, recipe="reference"), squares(6))
    with pytest.raises(TrainingError, match=r"the loss is (nan|inf) at step \d+; .*below 1e\+30"):
        list(training.run())


@pytest.mark.parametrize("class_weights", ["none", "median_frequency"])
def test_a_step_of_ignored_pixels_changes_nothing(class_weights: str) -> None:
    blank = [relabelled(pair, 255) for pair in squares(3)]
    config = settings(backbone="resnet18", epochs=1, ema_decay=0.9, class_weights=class_weights)
    training = trainer(config, blank)
    before = weights(training)
    (step,) = training.run()
    assert (step.loss, step.skipped) == (0, True)
    assert_equal(weights(training), before)  # neither decay nor statistics of normalisations
    assert_equal(training.model.net.state_dict(), before)


def test_a_label_that_is_no_class_is_named_with_its_sample() -> None:
    """From a worker, as well: no traceback of another process in the message."""
    samples = [replace(relabelled(pair, 7, 5), key="street/4") for pair in squares(3)]
    with pytest.raises(LabelError) as caught:
        list(trainer(settings(num_workers=1), samples).run())
    assert str(caught.value) == (
        "training sample street/4: label holds class 7 in 240 pixels; classes are 0..1"
    )


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"image": squares(1)[0].image[:90]}, TruncatedImage, "training sample pair: truncated"),
        ({"label": squares(1, (30, 30))[0].label}, LabelError, r"is \(30, 30\), its image \(40, 4"),
    ],
)
def test_a_sample_that_cannot_be_used_is_named(
    changes: dict[str, bytes], error: type[FcnError], message: str
) -> None:
    samples = [replace(pair, **changes) for pair in squares(3)]
    with pytest.raises(error, match=message):
        list(trainer(settings(), samples).run())


def test_more_classes_than_a_byte_holds() -> None:
    classes = Classes.named([f"class {i}" for i in range(300)], ignore_index=65_535)
    label = np.full((32, 32), 299, np.uint16)
    label[0] = 65_535
    pair = Pair(squares(1, (32, 32))[0].image, encode_mask(label))
    net = FCN("squeezenet1_1", 300)
    config = settings(epochs=1)
    training = Trainer(
        Model(net, classes, TORCHVISION), 3 * [pair], config,
        class_pixels=[1] * 300, transplant=Transplant(input=TORCHVISION),
    )  # fmt: skip
    (step,) = training.run()
    assert step.loss == pytest.approx(math.log(300), rel=1e-3)


def test_a_gradient_that_is_not_finite_stops_the_training_before_it_does_harm() -> None:
    training = trainer(settings(), squares(6))
    before = weights(training)
    training.net.score_fr.weight.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(TrainingError, match=r"the gradient is not finite at step 1; .*below 0\.0"):
        list(training.run())
    assert_equal(weights(training), before)


def test_a_step_that_overflows_in_fp16_is_skipped_and_the_scale_halved() -> None:
    training = trainer(settings(precision="fp16", epochs=3, ema_decay=0.9), squares(6))
    before = weights(training)
    hook = training.net.score_fr.weight.register_hook(lambda gradient: gradient * math.inf)
    steps = training.run()
    assert next(steps).skipped
    assert_equal(weights(training), before)
    assert_equal(training.model.net.state_dict(), before)
    assert training._scaler.get_scale() == 2**15
    hook.remove()
    assert not next(steps).skipped
    assert not torch.equal(weights(training)["score_fr.weight"], before["score_fr.weight"])


def test_overflow_without_end_stops_the_training() -> None:
    training = trainer(settings(precision="fp16", epochs=MAX_SKIPS, batch_size=3), squares(6))
    training.net.score_fr.weight.register_hook(lambda gradient: gradient * math.inf)
    message = f"fp16 overflowed in {MAX_SKIPS} steps in a row, .* another precision than fp16"
    with pytest.raises(TrainingError, match=message):
        list(training.run())
    assert training.step == MAX_SKIPS - 1


@pytest.mark.parametrize("class_weights", ["none", "median_frequency"])
def test_accumulated_batches_make_the_step_of_one_large_batch(class_weights: str) -> None:
    ignored = (0, 9, 35, 3, 20, 1)  # rows: the batches differ in labelled pixels
    samples = [relabelled(*pair) for pair in zip(squares(6), 6 * [255], ignored, strict=True)]
    results = []
    for batch_size, accumulate in ((6, 1), (2, 3)):
        config = settings(
            batch_size=batch_size, accumulate=accumulate, recipe="reference", learning_rate=0.01,
            class_weights=class_weights,
        )  # fmt: skip
        training = trainer(config, samples)
        for layer in training.net.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0
        steps = list(training.run())
        results.append((steps, weights(training)))
    (whole, expected), (parts, found) = results
    assert [step.num_images for step in parts] == [6, 6]
    assert [s.loss for s in parts] == pytest.approx([s.loss for s in whole], rel=1e-5)
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-7)


def test_steps_of_accumulated_batches_cover_the_samples() -> None:
    training = trainer(settings(batch_size=2, accumulate=2, epochs=3), squares(5))
    steps = list(training.run())
    assert training.num_steps == 4
    assert [step.num_images for step in steps] == [4, 4, 4, 3]
    assert [step.epoch for step in steps] == [0, 1, 2, 3]
    assert [step.ends_epoch for step in steps] == [False, True, True, True]


def test_the_model_of_an_average_is_the_average() -> None:
    training = trainer(settings(backbone="resnet18", ema_decay=0.5), squares(6))
    expected = weights(training)
    for number, _ in enumerate(training.run()):
        decay = min(0.5, (1 + number) / (10 + number))
        for name, value in weights(training).items():
            mean = expected[name]
            expected[name] = decay * mean + (1 - decay) * value if mean.ndim else value
    found = training.model.net.state_dict()
    for name, mean in expected.items():
        torch.testing.assert_close(found[name], mean)
    assert not torch.equal(found["score_fr.weight"], weights(training)["score_fr.weight"])


@pytest.mark.skipif(
    not hasattr(torch.compiler, "set_default_backend"),
    reason="this PyTorch cannot change the default back end",
)
def test_a_compiled_network_is_captured_whole_and_learns_the_same() -> None:
    """Captured as for any back end; this one runs the graph as it is, without a C++ compiler."""
    graphs: list[torch.fx.GraphModule] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    plain = trainer(settings(), squares(6))
    list(plain.run())
    torch.compiler.set_default_backend(backend)
    try:
        compiled = trainer(settings(compile=True), squares(6))
        list(compiled.run())
    finally:
        torch.compiler.set_default_backend(None)
        torch.compiler.reset()
    assert len(graphs) == 1
    assert_equal(weights(plain), weights(compiled))


def test_deterministic_steps_and_nothing_else() -> None:
    training = trainer(settings(deterministic=True, epochs=1), squares(6))
    seen = []
    training.net.register_forward_hook(
        lambda *_: seen.append(torch.are_deterministic_algorithms_enabled())
    )
    for _ in training.run():
        assert not torch.are_deterministic_algorithms_enabled()
    assert seen == [True, True]


def test_a_training_needs_a_sample() -> None:
    with pytest.raises(ValueError, match="no sample"):
        trainer(settings(), [])


def test_a_backbone_without_the_stride_is_refused_at_once() -> None:
    with pytest.raises(ValueError, match=r"squeezenet1_1 has strides \[4, 8, 16\], not 32"):
        settings(stride=32)


def test_a_stage_divides_the_learning_rate_by_a_hundred() -> None:
    rates = []
    for from_stride in (None, 16):
        transplant = Transplant(input=TORCHVISION, from_stride=from_stride)
        config = settings(recipe="reference", epochs=1)
        (step, *_) = trainer(config, squares(3), transplant=transplant).run()
        rates.append(step.learning_rate)
    assert rates[1] == pytest.approx(rates[0] / 100)


def test_a_stage_has_the_rate_of_its_place_wherever_it_comes_from() -> None:
    assert [num_stages(8, s, coarsest=32) for s in (None, 8, 16, 32)] == [0, 0, 2, 2]
    assert [num_stages(16, s, coarsest=32) for s in (None, 16, 32)] == [0, 0, 1]
    assert num_stages(8, 16, coarsest=16) == 1


def test_two_heads_learn_together() -> None:
    config = settings(
        backbone="resnet18", epochs=8, batch_size=4, crop_size=None, recipe="modern",
        class_weights="median_frequency",
    )  # fmt: skip
    training = two_headed(config)
    losses = [step.loss for step in training.run()]
    assert losses[0] == pytest.approx(2 * math.log(2), rel=1e-3)
    held_out = [TwoLabels(pair, str(1 + i)) for i, pair in enumerate(squares(6, seed=1))]
    result = score_split(
        score_samples(Predictor(training.model), held_out),
        training.model.classes,
        training.model.further_classes,
    )
    assert result.scores.mean_iu > 0.75
    assert result.further["half"].scores.mean_iu > 0.75
