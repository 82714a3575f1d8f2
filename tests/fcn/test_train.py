import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save

from fcn.checkpoint import Model, read_safetensors
from fcn.classes import Classes
from fcn.errors import CheckpointError, FcnError, LabelError, TrainingError, TruncatedImage
from fcn.evaluate import score_samples, score_split
from fcn.input import TORCHVISION
from fcn.masks import decode_mask, encode_mask
from fcn.metrics import Scores
from fcn.model import FCN
from fcn.predict import Predictor
from fcn.recipes import TrainConfig
from fcn.train import MAX_SKIPS, Step, Trainer, num_stages, transplant_of
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


def assert_same_state(left: bytes, right: bytes) -> None:
    """Equal tensors and metadata; their order in the file is the library's."""
    (tensors, metadata), (other_tensors, other_metadata) = map(read_safetensors, (left, right))
    assert metadata == other_metadata
    assert_equal(tensors, other_tensors)


def test_training_learns() -> None:
    samples = squares(24)
    config = settings(backbone="resnet18", epochs=8, batch_size=4, crop_size=None)
    training = trainer(config, samples)
    losses = [step.loss for step in training.run()]
    assert losses[0] == pytest.approx(math.log(2), rel=1e-3)  # zero scores: every class as likely
    scored = score_samples(Predictor(training.model), squares(6, seed=1))
    scores = Scores(np.sum([sample.confusion for sample in scored], axis=0))
    assert scores.mean_iu > 0.8


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


def killed_again_and_again(config: TrainConfig, size: int, folder: Path) -> bytes:
    """The state at the end of a training in ``size`` processes, see `tests.fcn.killed`."""
    command = [sys.executable, "-m", "tests.fcn.killed", config.model_dump_json()]
    run = subprocess.run(
        [*command, str(folder), str(size)], capture_output=True, text=True, timeout=200, check=False
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) >= 5  # kills
    return (folder / "state").read_bytes()


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


def relabelled(pair: Pair, value: int, rows: int = 40) -> Pair:
    """The pair with ``value`` in the first rows of its label map."""
    label = decode_mask(pair.label).copy()
    label[:rows] = value
    return replace(pair, label=encode_mask(label, CLASSES.palette))


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


def test_weights_that_are_not_finite_are_never_a_state() -> None:
    training = trainer(settings(), squares(6))
    with torch.no_grad():
        training.net.score_fr.weight[0, 0] = math.inf
    with pytest.raises(TrainingError, match=r"1 of \d+ weights are not finite .*score_fr\.weight"):
        training.state()


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


def test_a_resumed_training_of_two_heads_ends_with_the_same_weights() -> None:
    whole = two_headed(settings(epochs=1, batch_size=8))
    list(whole.run())
    begun = two_headed(settings(epochs=1, batch_size=8))
    next(begun.run())
    resumed = two_headed(settings(epochs=1, batch_size=8), begun.state())
    list(resumed.run())
    assert_equal(weights(whole), weights(resumed))
