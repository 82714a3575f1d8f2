import io
from pathlib import Path

import numpy as np
import pytest
import torch

import fcn
from fcn.checkpoint import to_bytes
from fcn.classes import Classes
from fcn.errors import CheckpointError
from fcn.input import CAFFE, TORCHVISION
from fcn.weights import transplant
from tests.fcn.scenes import CLASSES


def reader(data: bytes):  # type: ignore[no-untyped-def]
    return lambda _: data


def trained(stride: int, backbone: str = "resnet18") -> fcn.Model:
    torch.manual_seed(stride)
    net = fcn.FCN(backbone, len(CLASSES), stride)
    torch.nn.init.normal_(net.score_fr.weight)
    return fcn.Model(net, CLASSES, CAFFE)


def test_no_weights_leave_the_net_alone() -> None:
    net = fcn.FCN("squeezenet1_1", 2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    done = transplant(net, "none", CLASSES)
    assert done.input == TORCHVISION
    assert not done.copied
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_a_finer_net_takes_all_of_a_coarser_one() -> None:
    coarse, net = trained(32), fcn.FCN("resnet18", len(CLASSES), 16)
    done = transplant(net, "coarse", CLASSES, reader(to_bytes(coarse)))
    assert set(done.copied) == set(coarse.net.state_dict())
    assert set(done.left) == {"fuse.16.score_pool.weight", "fuse.16.score_pool.bias"}
    assert done.from_stride == 32
    assert done.input == CAFFE  # inputs belong to the weights
    assert torch.equal(net.score_fr.weight, coarse.net.score_fr.weight)
    assert not net.fuse["16"].score_pool.weight.any()  # type: ignore[union-attr, operator]


def test_another_class_list_is_refused() -> None:
    net = fcn.FCN("resnet18", 3, 16)
    others = Classes.named(("a", "b", "c"))
    with pytest.raises(
        CheckpointError, match=r"model of 2 classes \(ground, square\), .* 3 \(a, b, c\)"
    ):
        transplant(net, "coarse", others, reader(to_bytes(trained(32))))


def test_another_backbone_is_refused() -> None:
    with pytest.raises(CheckpointError, match="a model on resnet18, but backbone=squeezenet1_1"):
        transplant(fcn.FCN("squeezenet1_1", 2), "coarse", CLASSES, reader(to_bytes(trained(32))))


def test_bytes_that_are_no_weights_are_refused() -> None:
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        transplant(fcn.FCN("squeezenet1_1", 2), "x", CLASSES, reader(b"nothing of the kind"))
    with pytest.raises(CheckpointError, match=r"not a readable \.npz"):
        transplant(fcn.FCN("squeezenet1_1", 2), "x", CLASSES, reader(b"PK\x03\x04garbage"))


def test_an_npz_of_pickles_is_refused() -> None:
    file = io.BytesIO()
    np.savez(file, **{"conv1.weight": np.array([{}], dtype=object)})
    with pytest.raises(CheckpointError, match=r"not a readable \.npz"):
        transplant(fcn.FCN("squeezenet1_1", 2), "x", CLASSES, reader(file.getvalue()))


def test_an_npz_without_a_layer_is_refused() -> None:
    file = io.BytesIO()
    np.savez(file, **{"conv1.weight": np.zeros((64, 3, 3, 3), np.float32)})
    with pytest.raises(CheckpointError, match=r"the \.npz has no 'conv1.bias'"):
        transplant(fcn.FCN("squeezenet1_1", 2), "x", CLASSES, reader(file.getvalue()))


def test_a_named_file_needs_a_reader() -> None:
    with pytest.raises(ValueError, match="no way to read one"):
        transplant(fcn.FCN("squeezenet1_1", 2), "x.npz", CLASSES)


def test_squeezenet_of_imagenet_is_copied_whole(squeezenet_npz: Path) -> None:
    net = fcn.FCN("squeezenet1_1", 2)
    done = transplant(net, "npz", CLASSES, reader(squeezenet_npz.read_bytes()))
    assert len(done.copied) == 50  # 26 layers of weight and bias, but conv10's
    assert done.left == (
        "score_fr.weight", "score_fr.bias",
        "fuse.8.score_pool.weight", "fuse.8.score_pool.bias",
    )  # fmt: skip
    assert done.input == CAFFE
    arrays = np.load(squeezenet_npz)
    expected = torch.from_numpy(arrays["fire9/expand3x3.weight"])
    assert torch.equal(net.trunk.state_dict()["features.12.expand3x3.weight"], expected)


def test_a_pytorch_file_is_named_as_what_it_is() -> None:
    file = io.BytesIO()
    torch.save({"weight": torch.zeros(2)}, file)
    with pytest.raises(CheckpointError, match=r"PyTorch's own \.pth files are pickles"):
        transplant(fcn.FCN("squeezenet1_1", 2), "x", CLASSES, reader(file.getvalue()))


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real download, through a proxy that nobody serves."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("TORCH_HOME", "/nonexistent/torch")
    with pytest.raises(CheckpointError, match=r"squeezenet1_1 cannot be had .* give init='none'"):
        transplant(fcn.FCN("squeezenet1_1", 2), "imagenet", CLASSES)
