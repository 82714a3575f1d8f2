import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fcn.errors import CheckpointError
from fcn.model import FCN
from fcn.state_dicts import read_state_dict
from fcn.weights import transplant
from tests.fcn.caffe_files import caffemodel
from tests.fcn.scenes import CLASSES


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_asks_for_more_than_weights_is_not_run(legacy: bool, tmp_path: Path) -> None:
    file = io.BytesIO()
    content = {"weight": torch.zeros(2), "more": Written(tmp_path / "owned")}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="not a readable state dict of PyTorch"):
        read_state_dict(file.getvalue())
    assert not (tmp_path / "owned").exists()


@dataclass
class Written:
    """Unpickled without a guard, it writes a file."""

    path: Path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("legacy", [False, True])
def test_every_truncated_pickle_is_refused(legacy: bool) -> None:
    file = io.BytesIO()
    state = {"conv1.weight": torch.zeros(9), "conv1.bias": torch.zeros(3)}
    torch.save(state, file, _use_new_zipfile_serialization=not legacy)
    data = file.getvalue()
    for end in [*range(1, len(data), 37), len(data) - 1]:
        with pytest.raises(CheckpointError):
            read_state_dict(data[:end])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list; expected a state dict"),
        ({}, "holds nothing; expected a state dict"),
        ({"epoch": 3}, "'epoch' is no weight"),
        ({1: torch.zeros(1)}, "1 is no weight"),
        ({"weight": torch.zeros(2, 2).to_sparse()}, "'weight' is no plain tensor"),
        ({"weight": torch.zeros(2, dtype=torch.complex64)}, "'weight' is no plain tensor"),
        ({"weight": torch.zeros(1).half().expand(2**40)}, "tensors take 4,398,046,511,104 bytes"),
        (dict.fromkeys("abcde", torch.zeros(1).expand(2**28)), "tensors take 5,368,709,120 bytes"),
    ],
)
def test_pickles_of_other_things_are_refused(content: object, reason: str) -> None:
    file = io.BytesIO()
    torch.save(content, file)
    with pytest.raises(CheckpointError, match=reason):
        read_state_dict(file.getvalue())


LONG = 10_000 * "x"


def packed(form: str) -> bytes:
    """A weight of a long name."""
    if form == "safetensors":
        return save({LONG: torch.zeros(1)})
    if form == "caffemodel":
        return caffemodel({LONG: [np.zeros(1, np.float32)]})
    file = io.BytesIO()
    if form == "npz":
        np.savez(file, **{LONG: np.zeros(1)})
    else:
        torch.save({LONG: torch.zeros(1)}, file)
    return file.getvalue()


@pytest.mark.parametrize("form", ["safetensors", "caffemodel", "npz", "pth"])
def test_names_that_fill_no_message_are_refused(form: str) -> None:
    with torch.device("meta"):
        net = FCN("squeezenet1_1", 2)
    with pytest.raises(CheckpointError, match=r"a name of 10,\d+ characters, 'xxx") as refused:
        transplant(net, "x", CLASSES, lambda _: packed(form))
    assert len(str(refused.value)) < 200


def test_what_is_no_weight_is_not_shown_whole() -> None:
    file = io.BytesIO()
    torch.save({tuple(range(10_000)): torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match=r"\(0, 1, 2, .* is no weight") as refused:
        read_state_dict(file.getvalue())
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_that_holds_a_state_dict_is_read(legacy: bool) -> None:
    file = io.BytesIO()
    content = {"epoch": 3, "model_state_dict": {"a": torch.ones(2).half()}}
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    assert torch.equal(read_state_dict(file.getvalue())["a"], torch.ones(2))


@settings(max_examples=200, deadline=None)
@given(
    legacy=st.booleans(),
    changes=st.lists(st.tuples(st.integers(0, 10**5), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_read_or_refused(legacy: bool, changes: list[tuple[int, int]]) -> None:
    file = io.BytesIO()
    torch.save({"a": torch.ones(4, 3)}, file, _use_new_zipfile_serialization=not legacy)
    data = bytearray(file.getvalue())
    for place, value in changes:
        data[place % len(data)] = value
    try:
        found = read_state_dict(bytes(data))
    except CheckpointError:
        return
    assert all(isinstance(tensor, torch.Tensor) for tensor in found.values())
