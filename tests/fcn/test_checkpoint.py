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
    options = {"in_channels": 4, "at_once": True, "heads": {"a": 1, "b": 1}}
    net = fcn.FCN("squeezenet1_1", 2, 16, learnable_upsampling=True, **options)
    loaded = fcn.load(to_bytes(fcn.Model(net, CLASSES, CAFFE))).net
    assert {name: getattr(loaded, name) for name in options} == options
    assert loaded.learnable_upsampling


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
