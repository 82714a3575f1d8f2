"""Training over several ranks takes the steps of one process alone. Real processes, gloo."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fcn.checkpoint import read_safetensors
from fcn.errors import TrainingError
from fcn.parallel import World
from tests.fcn.ranks import Case
from tests.fcn.scenes import squares
from tests.fcn.trainers import assert_same_state, killed_again_and_again, settings, trainer

Answers = list[dict[str, Any]]
Train = Callable[..., tuple[Answers, Path]]


@pytest.fixture(scope="module")
def train(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Train]:
    """Trains over ranks; gives what each says, and the folder of their states."""
    command = [sys.executable, "-m", "tests.fcn.ranks"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin
        assert process.stdout
        questions, lines = process.stdin, process.stdout

        def ask(config: Any, size: int, samples: str = "uneven", **more: Any) -> Any:
            folder = tmp_path_factory.mktemp("states")
            text = config.model_dump_json() if config else ""
            case = Case(text, samples, size, str(folder), **more)
            questions.write(case.to_json() + "\n")
            questions.flush()
            return json.loads(lines.readline()), folder

        yield ask
        questions.close()


def assert_same_states(folder: Path, size: int) -> None:
    """The ranks do not drift apart: the same bits."""
    first, *others = ((folder / f"rank-{rank}").read_bytes() for rank in range(size))
    for other in others:
        assert_same_state(first, other)


def assert_close_states(left: Path, right: Path) -> None:
    """Weights and statistics that are equal but for the order of summation.

    Rounding goes with the size of what is summed, so a weight is held against the largest of its
    tensor: which of them end near 0, and what rounding is of these, is chance. A bias whose
    gradients nearly cancel has moved by 1e-6, of which rounding is a large part.
    """
    tensors, others = (read_safetensors(path.read_bytes())[0] for path in (left, right))
    assert tensors.keys() == others.keys()
    for name in (name for name in tensors if name.startswith(("net.", "average."))):
        bound = max(1e-6, 1e-4 * float(others[name].abs().max()))
        torch.testing.assert_close(tensors[name], others[name], rtol=0, atol=bound, msg=name)


@pytest.mark.parametrize(
    "changes",
    [
        {"batch_size": 4},
        {"batch_size": 3, "accumulate": 2, "ema_decay": 0.5, "class_weights": "median_frequency"},
        {"batch_size": 5, "crop_size": None},
        {"batch_size": 6, "crop_size": None, "backbone": "resnet18", "ema_decay": 0.9},
    ],
    ids=str,
)
def test_several_processes_take_the_steps_of_one(train: Train, changes: dict[str, Any]) -> None:
    """To float rounding, with batch normalisation as well, however the last images fall."""
    config = settings(recipe="reference", learning_rate=1e-3, **changes)
    (alone,), whole = train(config, 1)
    for size in (2, 3):
        ranks, folder = train(config, size)
        assert all(rank == ranks[0] for rank in ranks)
        assert ranks[0]["images"] == alone["images"]
        assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert_close_states(whole / "rank-0", folder / "rank-0")
        assert_same_states(folder, size)


def test_several_processes_take_the_steps_of_one_with_two_heads(train: Train) -> None:
    """No image of the last batch falls to the second and third rank."""
    config = settings(
        epochs=1, batch_size=5, crop_size=None, recipe="reference", learning_rate=1e-3
    )
    (alone,), whole = train(config, 1, "two heads")
    ranks, folder = train(config, 3, "two heads")
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_close_states(whole / "rank-0", folder / "rank-0")
    assert_same_states(folder, 3)


@pytest.mark.parametrize("ignore_index", [-1, 300])
def test_a_rank_without_images_ignores_what_no_byte_holds(train: Train, ignore_index: int) -> None:
    """The only image falls to the first rank; the second pads none to its size."""
    config = settings(epochs=1, batch_size=2, recipe="reference", learning_rate=1e-3)
    (alone,), whole = train(config, 1, "one", ignore_index=ignore_index)
    ranks, folder = train(config, 2, "one", ignore_index=ignore_index)
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_close_states(whole / "rank-0", folder / "rank-0")


def test_shared_statistics_are_those_of_the_whole_batch(train: Train) -> None:
    """In float64, over shares of three, one and no image: output, gradients, running figures."""
    _, folder = train(None, 3, "normalise")
    torch.manual_seed(0)
    images = torch.randn(4, 5, 3, 2, dtype=torch.float64, requires_grad=True)
    norm = torch.nn.BatchNorm2d(5, dtype=torch.float64)
    output = norm(images)
    output.pow(3).sum().backward()
    found = [torch.load(folder / f"rank-{rank}", weights_only=True) for rank in range(3)]
    for name, expected in (("output", output), ("gradient", images.grad)):
        torch.testing.assert_close(torch.cat([rank[name] for rank in found]), expected)
    for name, parameter in norm.named_parameters():
        torch.testing.assert_close(sum(rank[name] for rank in found), parameter.grad)
    for name, buffer in norm.named_buffers():
        assert all(torch.equal(rank[name], found[0][name]) for rank in found)
        torch.testing.assert_close(found[0][name], buffer)


def test_a_rank_without_labelled_pixels_adds_nothing_and_waits_for_nothing(train: Train) -> None:
    config = settings(batch_size=2, crop_size=None, recipe="reference", learning_rate=1e-3)
    (alone,), whole = train(config, 1, "mostly blank")
    ranks, folder = train(config, 2, "mostly blank")
    assert alone["skipped"].count(True) == 4
    assert ranks[0] == ranks[1]
    assert ranks[0]["skipped"] == alone["skipped"]
    assert ranks[0]["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    assert_close_states(whole / "rank-0", folder / "rank-0")


def test_a_state_goes_on_over_as_many_ranks_to_the_same_bits_and_over_others(train: Train) -> None:
    config = settings(batch_size=4, ema_decay=0.9)
    _, whole = train(config, 3, dropout=True)
    _, first = train(config, 3, dropout=True, stop=2)
    (rest, *_), second = train(config, 3, dropout=True, state=str(first / "rank-0"))
    assert len(rest["losses"]) == 4
    assert_same_state((whole / "rank-0").read_bytes(), (second / "rank-0").read_bytes())

    _, whole = train(config, 1)
    state = None
    for size, stop in ((2, 2), (1, 3), (3, None)):
        _, folder = train(config, size, state=state, stop=stop)
        state = str(folder / "rank-0")
    assert_close_states(whole / "rank-0", folder / "rank-0")


def test_processes_killed_again_and_again_end_bit_identical(train: Train, tmp_path: Path) -> None:
    config = settings(epochs=4, batch_size=4, ema_decay=0.9)
    _, whole = train(config, 2, "squares", dropout=True)
    state = killed_again_and_again(config, 2, tmp_path)
    assert_same_state((whole / "rank-0").read_bytes(), state)


def test_an_overflow_on_one_rank_is_one_on_all(train: Train) -> None:
    config = settings(batch_size=4, precision="fp16")
    ranks, folder = train(config, 2, overflow=1, stop=2)
    assert [rank["skipped"] for rank in ranks] == [[True, False]] * 2
    assert_same_states(folder, 2)
    _, metadata = read_safetensors((folder / "rank-0").read_bytes())
    assert json.loads(metadata["scaler"])["scale"] == 2**15


def test_more_processes_than_a_batch_has_images_are_refused() -> None:
    with pytest.raises(ValidationError, match="a batch of 3 images cannot be dealt out to 4 proc"):
        settings(batch_size=3, num_processes=4)
    with pytest.raises(TrainingError, match="a batch of 3 images cannot be dealt out to 4 proc"):
        trainer(settings(batch_size=3), squares(4), world=World(0, 4))


def test_several_processes_on_one_named_gpu_are_refused() -> None:
    with pytest.raises(ValidationError, match="cuda:1 is one GPU, and 2 processes need one each"):
        settings(device="cuda:1", num_processes=2)
    assert settings(device="cuda:1", num_processes=1).num_processes == 1


def test_compiling_what_exchanges_statistics_is_refused() -> None:
    config = settings(backbone="resnet18", compile=True)
    with pytest.raises(TrainingError, match="does not go with the batch normalisation of resnet18"):
        trainer(config, squares(4), world=World(0, 2))
    trainer(config, squares(4))


def test_how_many_processes_is_no_other_training() -> None:
    state = trainer(settings(num_processes=2), squares(4)).state()
    assert trainer(settings(num_processes=3), squares(4), state).step == 0


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(1, 5))
def test_every_item_falls_to_one_rank(items: list[int], size: int) -> None:
    shares = [World(rank, size).share(items) for rank in range(size)]
    assert sorted(item for share in shares for item in share) == sorted(items)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
