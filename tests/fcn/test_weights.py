import hashlib
import io
import struct
import urllib.request
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save as save_tensors
from torchvision.models import SqueezeNet1_1_Weights, get_model

import fcn
from fcn.checkpoint import to_bytes
from fcn.classes import Classes
from fcn.errors import CheckpointError
from fcn.input import CAFFE, TORCHVISION, InputSpec
from fcn.trunks import classifier
from fcn.weights import transplant
from tests.fcn.scenes import CLASSES
from tests.fcn.test_state_dicts import Written


def reader(data: bytes):  # type: ignore[no-untyped-def]
    return lambda _: data


def trained(stride: int, backbone: str = "resnet18") -> fcn.Model:
    torch.manual_seed(stride)
    net = fcn.FCN(backbone, len(CLASSES), stride)
    torch.nn.init.normal_(net.score_fr.weight)
    return fcn.Model(net, CLASSES, CAFFE)


def test_no_weights_leave_the_net_alone(caplog: pytest.LogCaptureFixture) -> None:
    net = fcn.FCN("squeezenet1_1", 2)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with caplog.at_level("INFO", logger="fcn.weights"):
        done = transplant(net, "none", CLASSES)
    assert caplog.messages == [
        f"first weights: none from another network, all {len(before)} tensors start anew"
    ]
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


def test_the_file_that_weights_came_from_is_told_by_its_digest(
    caplog: pytest.LogCaptureFixture,
) -> None:
    data, net = to_bytes(trained(32)), fcn.FCN("resnet18", len(CLASSES), 16)
    with caplog.at_level("INFO", logger="fcn.weights"):
        done = transplant(net, "coarse", CLASSES, reader(data))
    assert done.sha256 == hashlib.sha256(data).hexdigest()
    assert caplog.messages == [
        f"first weights: {len(done.copied)} transplanted, 0 of them coerced; 2 keep their start"
    ]
    assert transplant(net, "none", CLASSES).sha256 is None


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


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': (",
        "{[]: 1}",
        "{'descr': (), 'fortran_order': False, 'shape': (1,)}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30},)}}",
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({2**40},)}}",
    ],
)
def test_an_npz_of_a_strange_array_is_refused(header: str) -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        size = struct.pack("<H", len(header) + 1)
        archive.writestr("a.npy", b"\x93NUMPY\x01\x00" + size + header.encode() + b"\n")
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


def classifier_state(backbone: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return classifier(backbone).state_dict()


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1", "regnet_x_400mf", "alexnet"])
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_torchvisions_weights_are_read_from_a_file(backbone: str, form: str) -> None:
    state = classifier_state(backbone)
    file = io.BytesIO()
    torch.save(state, file)
    data = file.getvalue() if form == "pth" else save_tensors(state)
    net = fcn.FCN(backbone, 2, 16)
    done = transplant(net, "file", CLASSES, reader(data))
    assert done.input == TORCHVISION
    assert all(name.startswith(("score_fr", "fuse")) for name in done.left)
    own = net.trunk.state_dict()
    assert own.keys() <= state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in own.items())
    linear = ("head.fc6.weight", "head.fc7.weight") if backbone == "alexnet" else ()
    assert done.coerced == linear
    if linear:
        fc6 = state["classifier.1.weight"].reshape(4096, 256, 6, 6)
        assert torch.equal(net.head.fc6.weight, fc6)


def test_the_weights_of_a_deeper_classifier_are_refused() -> None:
    """All that a ResNet-18 has, under the same names and shapes, a ResNet-34 has too."""
    data = save_tensors(classifier_state("resnet34"))
    reason = r"96 weights that resnet18 does not have, first layer1\.2\.bn1\.bias"
    with pytest.raises(CheckpointError, match=reason):
        transplant(fcn.FCN("resnet18", 2), "x", CLASSES, reader(data))


def test_googlenets_weights_want_the_input_that_torchvision_computes_for_them() -> None:
    state = classifier_state("googlenet")
    done = transplant(fcn.FCN("googlenet", 2), "x", CLASSES, reader(save_tensors(state)))
    net = get_model("googlenet", init_weights=False, transform_input=True)
    image = torch.randint(0, 256, (1, 3, 8, 8), dtype=torch.uint8)
    expected = net._transform_input(TORCHVISION.normalise(image))
    torch.testing.assert_close(done.input.normalise(image), expected, atol=1e-5, rtol=0)


def test_further_channels_start_as_the_mean_of_the_three() -> None:
    state = classifier_state("resnet18")
    for in_channels in (1, 2, 4, 5):
        net = fcn.FCN("resnet18", 2, in_channels=in_channels)
        done = transplant(net, "x", CLASSES, reader(save_tensors(state)))
        assert done.coerced == ("trunk.conv1.weight",)
        own, three = net.trunk.conv1.weight, state["conv1.weight"]
        kept = 3 if in_channels > 3 else 0
        assert torch.equal(own[:, :kept], three[:, :kept])
        further = own[:, kept:]
        mean = three.mean(dim=1, keepdim=True).expand_as(further)
        torch.testing.assert_close(further, mean)


def test_scores_of_classes_with_the_same_name_are_kept() -> None:
    source = trained(16)
    torch.nn.init.normal_(source.net.fuse["16"].score_pool.weight)
    net = fcn.FCN("resnet18", 3, 16)
    classes = Classes.named(("sky", "square", "ground"))
    done = transplant(net, "x", classes, reader(to_bytes(source)), init_classes="by_name")
    for own, old in (
        (net.score_fr, source.net.score_fr),
        (net.fuse["16"].score_pool, source.net.fuse["16"].score_pool),
    ):
        assert torch.equal(own.weight[1], old.weight[1])
        assert torch.equal(own.weight[2], old.weight[0])
        assert not own.weight[0].any()
    assert {"score_fr.weight", "fuse.16.score_pool.bias"} <= set(done.coerced) <= set(done.copied)
    assert done.left == ()


def test_trained_upsampling_of_new_classes_starts_bilinear() -> None:
    source = fcn.Model(fcn.FCN("resnet18", 2, 32, learnable_upsampling=True), CLASSES, CAFFE)
    torch.nn.init.ones_(source.net.upscore.weight)
    net = fcn.FCN("resnet18", 2, 32, learnable_upsampling=True)
    bilinear = net.upscore.weight[1].clone()
    classes = Classes.named(("square", "sky"))
    transplant(net, "x", classes, reader(to_bytes(source)), init_classes="by_name")
    assert torch.equal(net.upscore.weight[0], torch.ones_like(bilinear))
    assert torch.equal(net.upscore.weight[1], bilinear)


def test_skips_on_another_scale_are_refused() -> None:
    source = to_bytes(trained(16))
    with pytest.raises(CheckpointError, match="at_once=False, but at_once=True was asked for"):
        transplant(fcn.FCN("resnet18", 2, 8, at_once=True), "x", CLASSES, reader(source))
    coarsest = to_bytes(trained(32))  # has no skip, so it starts either
    transplant(fcn.FCN("resnet18", 2, 16, at_once=True), "x", CLASSES, reader(coarsest))


def test_caffenet_has_no_weights_to_download() -> None:
    with pytest.raises(CheckpointError, match=r"no ImageNet weights of caffenet; .* \.caffemodel"):
        transplant(fcn.FCN("caffenet", 2), "imagenet", CLASSES)


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real download, through a proxy that nobody serves."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(urllib.request, "_opener", None)  # urllib keeps the first call's proxies
    monkeypatch.setenv("TORCH_HOME", "/nonexistent/torch")
    with pytest.raises(CheckpointError, match=r"squeezenet1_1 cannot be had .* give init='none'"):
        transplant(fcn.FCN("squeezenet1_1", 2), "imagenet", CLASSES)


def two_heads(geo: Sequence[str]) -> tuple[fcn.FCN, dict[str, fcn.Classes]]:
    sizes = {"main": 2, "geo": len(geo)}
    return fcn.FCN("resnet18", sum(sizes.values()), 32, heads=sizes), {
        "geo": fcn.Classes.named(geo)
    }


def test_a_class_keeps_its_scores_only_in_its_own_head() -> None:
    source_net, further = two_heads(["flat", "square"])
    torch.nn.init.normal_(source_net.score_fr.weight)
    source = fcn.Model(source_net, CLASSES, TORCHVISION, further_classes=further)
    net, further = two_heads(["square", "steep"])
    classes = fcn.Classes.named(["sky", "square"])  # of the source: 1 of the first head
    transplant(
        net, "x", classes, reader(to_bytes(source)), init_classes="by_name", further_classes=further
    )
    own, old = net.score_fr.weight, source_net.score_fr.weight
    assert not own[[0, 3]].any()
    assert torch.equal(own[1], old[1])
    assert torch.equal(own[2], old[3])


def test_a_source_with_other_heads_is_refused() -> None:
    source_net, further = two_heads(["flat", "steep"])
    source = fcn.Model(source_net, CLASSES, TORCHVISION, further_classes=further)
    net, further = two_heads(["steep", "flat"])
    with pytest.raises(CheckpointError, match=r"init is a model of 4 classes .*geo: flat"):
        transplant(net, "x", CLASSES, reader(to_bytes(source)), further_classes=further)


def test_a_pickle_among_the_downloads_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash in its name is compared at the download only."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    kept.parent.mkdir(parents=True)
    torch.save({"weight": torch.zeros(2), "more": Written(tmp_path / "owned")}, kept)
    with pytest.raises(CheckpointError, match=r"weights of squeezenet1_1 cannot be had .*hub"):
        transplant(fcn.FCN("squeezenet1_1", 2), "imagenet", CLASSES)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list; expected a state dict"),
        ({"features.0.weight": 3}, "'features.0.weight' is no weight"),
    ],
)
def test_a_download_that_holds_no_state_dict_is_named(
    content: object, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth"
    kept.parent.mkdir(parents=True)
    torch.save(content, kept)
    with torch.device("meta"):
        net = fcn.FCN("squeezenet1_1", 2)
    with pytest.raises(CheckpointError, match=rf"cannot be had .*hub.*{reason}.*; remove"):
        transplant(net, "imagenet", CLASSES)


def test_weights_of_another_shape_or_absent_are_named() -> None:
    with torch.device("meta"):
        net = fcn.FCN("squeezenet1_1", 2)
    state = classifier_state("squeezenet1_1")
    name = "features.3.squeeze.weight"
    other = save_tensors({**state, name: torch.zeros(16, 64, 3, 3)})
    shapes = rf"1 weights of init have another shape: trunk\.{name} is 16 x 64 x 3 x 3, expected"
    with pytest.raises(CheckpointError, match=rf"{shapes} 16 x 64 x 1 x 1"):
        transplant(net, "x", CLASSES, reader(other))
    lacking = save_tensors({n: t for n, t in state.items() if n != name})
    reason = rf"init lacks 1 of the weights of squeezenet1_1, first trunk\.{name}"
    with pytest.raises(CheckpointError, match=reason):
        transplant(net, "x", CLASSES, reader(lacking))


@torch.no_grad()
def test_squeezenet_of_imagenet_classifies_what_its_input_shows_it(
    squeezenet_npz: Path, coco_dir: Path
) -> None:
    """Channels the other way round, or without the means, these are other things."""
    net = fcn.FCN("squeezenet1_1", 2)
    spec = transplant(net, "npz", CLASSES, reader(squeezenet_npz.read_bytes())).input
    whole = get_model("squeezenet1_1", weights=None).eval()
    whole.load_state_dict(net.trunk.state_dict(), strict=False)
    arrays = np.load(squeezenet_npz)
    for kind in ("weight", "bias"):
        whole.get_parameter(f"classifier.1.{kind}").copy_(
            torch.from_numpy(arrays[f"conv10.{kind}"])
        )

    def found(spec: InputSpec, name: str) -> str:
        with Image.open(coco_dir / "JPEGImages" / f"{name}.jpg") as image:
            pixels = np.array(image.convert("RGB").resize((227, 227), Image.Resampling.BILINEAR))
        logits = whole(spec.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]))
        return str(SqueezeNet1_1_Weights.IMAGENET1K_V1.meta["categories"][int(logits.argmax())])

    bus, train = "000000000471", "000000000349"
    assert (found(spec, bus), found(spec, train)) == ("school bus", "passenger car")
    turned = replace(spec, channel_order="RGB", mean=spec.mean[::-1])
    assert found(turned, bus) != "school bus"
    assert found(turned, train) != "passenger car"
    assert found(replace(spec, mean=(0.0, 0.0, 0.0)), train) != "passenger car"
