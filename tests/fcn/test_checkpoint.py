import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

import fcn
from fcn.checkpoint import read_safetensors, to_bytes
from fcn.errors import CheckpointError
from fcn.input import CAFFE
from tests.fcn.models import two_headed_model
from tests.fcn.scenes import CLASSES


def model(backbone: str = "squeezenet1_1") -> fcn.Model:
    torch.manual_seed(0)
    net = fcn.FCN(backbone, len(CLASSES))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return fcn.Model(net.eval(), CLASSES, CAFFE, {"scores": {"mean_iu": 0.5}})


def test_a_model_file_describes_itself(tmp_path: Path) -> None:
    saved = model()
    fcn.save(saved, tmp_path / "model.safetensors")
    loaded = fcn.load(tmp_path / "model.safetensors")
    assert loaded.classes == CLASSES
    assert loaded.input == CAFFE
    assert loaded.facts["scores"] == {"mean_iu": 0.5}
    assert loaded.facts["versions"]["torch"] == torch.__version__.partition("+")[0]
    image = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(saved.net(image), loaded.net(image))


def test_one_flipped_bit_of_the_weights_is_noticed() -> None:
    data = bytearray(to_bytes(model()))
    data[-5000] ^= 1
    with pytest.raises(CheckpointError, match="not those that were saved"):
        fcn.load(bytes(data))


def test_a_loaded_model_can_be_trained_further() -> None:
    net = fcn.load(to_bytes(model())).net.train()
    net(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_model_file_keeps_what_its_network_was_built_with() -> None:
    options = {"in_channels": 4, "at_once": True, "heads": {"a": 2, "b": 1}}
    net = fcn.FCN("squeezenet1_1", 3, 16, learnable_upsampling=True, **options)
    further = {"b": fcn.Classes.named(["all"])}
    loaded = fcn.load(to_bytes(fcn.Model(net, CLASSES, CAFFE, further_classes=further))).net
    assert {name: getattr(loaded, name) for name in options} == options
    assert loaded.learnable_upsampling


def test_a_model_file_names_the_classes_of_every_head() -> None:
    saved = two_headed_model()
    loaded = fcn.load(to_bytes(saved))
    assert (loaded.classes, loaded.further_classes) == (saved.classes, saved.further_classes)


def test_the_card_of_one_head_says_nothing_of_others() -> None:
    _, metadata = read_safetensors(to_bytes(model()))
    assert "further_classes" not in metadata["fcn"]


@pytest.mark.parametrize(
    ("heads", "further", "message"),
    [
        ({"a": 2, "b": 1}, {}, "classes are given for .'a': 2., the network's heads"),
        ({"a": 2, "b": 1}, {"b": ["x", "y"]}, "classes are given for .'a': 2, 'b': 2."),
        ({"a": 2, "b": 1}, {"c": ["x"]}, "classes are given for .'a': 2, 'c': 1."),
        (None, {"b": ["x"]}, "the network's heads None"),
        ({"a": 2, "rle_b": 1}, {"rle_b": ["x"]}, "'rle_b' is no name of a head"),
        ({"a": 2, "b/c": 1}, {"b/c": ["x"]}, "'b/c' is no name of a head"),
    ],
)
def test_classes_must_be_those_of_the_heads(heads, further, message) -> None:
    net = fcn.FCN("squeezenet1_1", 2 if heads is None else 3, 16, heads=heads)
    classes = {name: fcn.Classes.named(names) for name, names in further.items()}
    with pytest.raises(ValueError, match=message):
        fcn.Model(net, CLASSES, CAFFE, further_classes=classes)


def test_heads_share_their_ignore_index() -> None:
    net = fcn.FCN("squeezenet1_1", 3, 16, heads={"a": 2, "b": 1})
    further = {"b": fcn.Classes.named(["x"], ignore_index=254)}
    with pytest.raises(ValueError, match="the same ignore_index"):
        fcn.Model(net, CLASSES, CAFFE, further_classes=further)


def test_a_regnet_is_built_and_loaded_without_memory_for_its_weights() -> None:
    saved = model("regnet_x_400mf")
    with torch.device("meta"):
        assert {p.device.type for p in fcn.FCN("regnet_x_400mf").parameters()} == {"meta"}
    image = torch.rand(1, 3, 33, 47)
    with torch.no_grad():
        assert torch.equal(saved.net(image), fcn.load(to_bytes(saved)).net(image))


def test_a_card_of_an_earlier_version_is_read() -> None:
    data = to_bytes(model())
    _, metadata = read_safetensors(data)
    card = json.loads(metadata["fcn"])
    for name in ("in_channels", "at_once", "heads"):
        del card[name]
    net = fcn.load(save_tensors(load_tensors(data), {"fcn": json.dumps(card)})).net
    assert (net.in_channels, net.at_once, net.heads) == (3, False, None)


@pytest.mark.parametrize(
    "data", [b"", b"not a model", b"\xff" * 64, struct.pack("<Q", 2**62) + b"{}"]
)
def test_other_bytes_are_no_model(data: bytes) -> None:
    with pytest.raises(CheckpointError, match="safetensors file"):
        fcn.load(data)


def test_every_truncation_is_noticed() -> None:
    data = to_bytes(model())
    for end in np.linspace(0, len(data) - 1, 40).astype(int):
        with pytest.raises(CheckpointError):
            fcn.load(data[:end])


def test_a_safetensors_file_of_others_is_told_apart() -> None:
    data = save_tensors({"weight": torch.zeros(2)})
    with pytest.raises(CheckpointError, match="without a model card"):
        fcn.load(data)


def test_weights_must_fit_the_card() -> None:
    data = to_bytes(model())
    _, metadata = read_safetensors(data)
    tensors = load_tensors(data)
    tensors["score_fr.weight"] = torch.zeros(3, 512, 1, 1)
    with pytest.raises(
        CheckpointError,
        match=r"1 of \d+ weights do not fit squeezenet1_1: score_fr.weight is 3 x 512 x 1 x 1, "
        "expected 2 x 512 x 1 x 1",
    ):
        fcn.load(save_tensors(tensors, metadata))


@pytest.mark.parametrize("dtype", [torch.int64, torch.float16, torch.complex64])
def test_weights_must_be_of_the_networks_dtype(dtype: torch.dtype) -> None:
    data = to_bytes(model())
    _, metadata = read_safetensors(data)
    tensors = load_tensors(data)
    tensors["score_fr.weight"] = tensors["score_fr.weight"].to(dtype)
    with pytest.raises(CheckpointError, match=rf"score_fr.weight holds {dtype}, expected .*32"):
        fcn.load(save_tensors(tensors, metadata))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": 2}, "format"),
        ({"backbone": "vgg17"}, "backbone"),
        ({"stride": 3}, "strides"),
        ({"classes": []}, "classes"),
        ({"classes": [{"id": 1, "name": "a", "colour": [0, 0, 0]}]}, "ids must be 0"),
        ({"classes": [{"id": 0}]}, "colour"),
        ({"code": "import os"}, "code"),
        ({"input": {**vars(CAFFE), "gamma": 2}}, "input.gamma: Unexpected"),
        ({"in_channels": 0}, "in_channels"),
        ({"in_channels": 2**62}, "card cannot be built: Storage size"),
        ({"heads": {"a": 5}}, "heads"),
    ],
)
def test_a_card_that_is_not_valid_is_refused(change: dict[str, object], reason: str) -> None:
    data = to_bytes(model())
    _, metadata = read_safetensors(data)
    card = json.dumps(json.loads(metadata["fcn"]) | change)
    with pytest.raises(CheckpointError, match=reason):
        fcn.load(save_tensors(load_tensors(data), {"fcn": card}))
