"""The authors' networks, read from their files, score as their definitions do."""

import io
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from torch import Tensor

import fcn
from fcn.classes import Classes
from fcn.errors import CheckpointError
from fcn.input import CAFFE, NYUD_COLOR_HHA, RELEASE
from fcn.released import released_names
from fcn.weights import transplant
from tests.fcn.caffe_files import caffemodel
from tests.fcn.published import (
    Layers,
    Weights,
    alexnet_scores,
    bilinear,
    color_hha_scores,
    vgg_maps,
    vgg_scores,
)

IMAGE = torch.randn(1, 3, 19, 45, generator=torch.Generator().manual_seed(0)) * 60
SCALES = {
    "scale_pool4": [np.full(512, 0.01, np.float32)],
    "scale_pool3": [np.full(256, 0.0001, np.float32)],
}
MIXED = bilinear(21, 4)
MIXED[0, 1, 0, 0] = 0.5
SCORES = [np.zeros((3, 4096, 1, 1), "f4")]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return Weights()


@pytest.fixture(scope="module")
def vgg(weights: Weights) -> dict[str, list[np.ndarray]]:
    """VGG16 up to fc7, full size: 134 million numbers."""
    return weights.vgg()


@pytest.fixture(scope="module")
def trunk_file(vgg: Layers) -> bytes:
    """The file of these layers alone. Files of a net can be joined: its layers follow."""
    return caffemodel(vgg)


@pytest.fixture(scope="module")
@torch.no_grad()
def maps(vgg: Layers) -> dict[str, Tensor]:
    return vgg_maps(vgg, IMAGE)


@pytest.fixture(scope="module")
def alexnet(weights: Weights) -> dict[str, list[np.ndarray]]:
    return weights.alexnet()


def assert_equal_scores(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert expected.std() > 1e-2, "degenerate scores prove nothing"
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize(
    ("system", "stride", "classes"),
    [
        ("voc-fcn32s", 32, 21),
        ("pascalcontext-fcn16s", 16, 60),
        ("voc-fcn8s", 8, 21),
        ("voc-fcn8s-atonce", 8, 21),
    ],
)
def test_scores_are_those_of_the_published_net(
    system: str,
    stride: int,
    classes: int,
    trunk_file: bytes,
    maps: Mapping[str, Tensor],
    weights: Weights,
) -> None:
    layers = weights.heads(classes, stride)
    if system.endswith("atonce"):
        layers |= SCALES
    net = fcn.load_caffemodel(trunk_file + caffemodel(layers))
    assert (net.backbone, net.stride, net.num_classes) == ("vgg16", stride, classes)
    assert net.geometry == "reference"
    assert net.at_once == system.endswith("atonce")
    assert not net.learnable_upsampling
    assert_equal_scores(net(IMAGE), vgg_scores(layers, maps, IMAGE, stride))


@torch.no_grad()
def test_siftflow_has_two_heads_over_one_trunk(
    trunk_file: bytes, maps: Mapping[str, Tensor], weights: Weights
) -> None:
    layers = weights.heads(33, 8, "_sem") | weights.heads(3, 8, "_geo")
    net = fcn.load_caffemodel(trunk_file + caffemodel(layers))
    assert net.heads == {"sem": 33, "geo": 3}
    scores = net.split(net(IMAGE))
    for head in ("sem", "geo"):
        assert_equal_scores(scores[head], vgg_scores(layers, maps, IMAGE, 8, f"_{head}"))
    geo = fcn.Classes.named(["sky", "vertical", "horizontal"])
    model = fcn.Model(
        net, fcn.Classes.named(map(str, range(33))), RELEASE, further_classes={"geo": geo}
    )
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    (found,) = fcn.Predictor(model).predict([pixels])
    normalised = RELEASE.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
    expected = net.split(net(normalised))["geo"][0].argmax(dim=0)
    assert (found.further["geo"].label == expected.numpy()).mean() > 0.999


@torch.no_grad()
def test_nyud_with_depth_sees_four_channels(vgg: Layers, weights: Weights) -> None:
    layers = {**vgg, "conv1_1_bgrd": weights.conv(64, 4, 3), **weights.heads(40, 32)}
    del layers["conv1_1"]
    net = fcn.load_caffemodel(caffemodel(layers))
    assert (net.in_channels, net.stride, net.num_classes) == (4, 32, 40)
    image = torch.cat([IMAGE, IMAGE[:, :1] / 60], dim=1)
    expected = vgg_scores(layers, vgg_maps(layers, image, "conv1_1_bgrd"), image, 32)
    assert_equal_scores(net(image), expected)


@torch.no_grad()
def test_nyud_with_hha_has_two_trunks(vgg: Layers, weights: Weights) -> None:
    """The large weights of fc6 and fc7 are the same in both; all that differs is told apart."""
    color = {**vgg, "score_fr": weights.conv(40, 4096, 1)}
    hha = {
        **color,
        "conv1_1": weights.conv(64, 3, 3),
        "conv5_3": weights.conv(512, 512, 3),
        "fc7": [vgg["fc7"][0], -vgg["fc7"][1]],
        "score_fr": weights.conv(40, 4096, 1),
    }
    layers = {f"{name}color": arrays for name, arrays in color.items()}
    layers |= {f"{name}hha": arrays for name, arrays in hha.items()}
    layers |= {"upscore": [bilinear(40, 64)]}
    net = fcn.load_caffemodel(caffemodel(layers))
    assert (net.backbone, net.stride, net.num_classes, net.modalities) == ("vgg16", 32, 40, (3, 3))
    assert (net.geometry, net.upscore.crop) == ("reference", 19)
    assert all(parameter.requires_grad for parameter in net.parameters())
    image = torch.cat([IMAGE, -IMAGE.flip(3)], dim=1)
    assert_equal_scores(net(image), color_hha_scores(layers, image))


def test_nyud_with_hha_wants_the_means_of_its_release() -> None:
    assert NYUD_COLOR_HHA.channels == [2, 1, 0, 3, 4, 5]
    assert NYUD_COLOR_HHA.means == (116.190, 97.203, 92.318, 132.431, 94.076, 118.477)
    assert NYUD_COLOR_HHA.stds == (1.0,) * 6


@torch.no_grad()
@pytest.mark.parametrize("trained", [False, True])
def test_alexnet_scores_are_those_of_the_published_net(alexnet: Layers, trained: bool) -> None:
    """Upsampling that was trained is kept as it is, one kernel a class."""
    layers = dict(alexnet)
    if trained:
        factors = np.random.default_rng(2).uniform(0.5, 1.5, (21, 21, 63, 63))
        layers["upscore"] = [(layers["upscore"][0] * factors).astype(np.float32)]
    net = fcn.load_caffemodel(caffemodel(layers))
    assert (net.backbone, net.stride, net.learnable_upsampling) == ("caffenet", 32, trained)
    assert_equal_scores(net(IMAGE), alexnet_scores(layers, IMAGE))


@torch.no_grad()
def test_the_pytorch_port_is_read(vgg: Layers, maps: Mapping[str, Tensor]) -> None:
    layers = Weights(1).heads(21, 8)
    state = {
        f"{name}.{kind}": torch.from_numpy(array)
        for name, arrays in {**vgg, **layers}.items()
        for kind, array in zip(("weight", "bias"), arrays, strict=False)
    }
    file = io.BytesIO()
    torch.save(state, file)
    net = fcn.load_torchfcn(file.getvalue(), at_once=True)
    assert (net.backbone, net.stride, net.geometry) == ("vgg16", 8, "reference")
    assert_equal_scores(net(IMAGE), vgg_scores(layers | SCALES, maps, IMAGE, 8))


@pytest.mark.parametrize(("stride", "crop"), [(32, 19), (16, 27)])
def test_the_coarser_nets_of_the_pytorch_port_are_read(stride: int, crop: int) -> None:
    """Each tensor repeats a number for every output, so that the file is small."""
    with torch.device("meta"):
        like = fcn.FCN("vgg16", 21, stride, "reference")
    generator = torch.Generator().manual_seed(stride)
    state, expected = {}, {}
    for own, name in released_names(like).items():
        shape = like.state_dict()[own].shape
        expected[own] = torch.randn(shape[0], generator=generator)
        state[name] = expected[own].reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    sizes = {32: {"upscore": 64}, 16: {"upscore2": 4, "upscore16": 32}}[stride]
    kernels = {f"{n}.weight": torch.from_numpy(bilinear(21, side)) for n, side in sizes.items()}
    file = io.BytesIO()
    torch.save(state | kernels, file)
    net = fcn.load_torchfcn(file.getvalue())
    assert (net.stride, net.upscore.crop, net.geometry) == (stride, crop, "reference")
    assert not net.learnable_upsampling
    assert not net.at_once
    found = net.state_dict()
    assert found.keys() == expected.keys()
    for name, numbers in expected.items():
        flat = found[name].flatten(1) if found[name].ndim > 1 else found[name][:, None]
        assert torch.equal(flat[:, 0], numbers)
        assert torch.equal(flat[:, -1], numbers)


def test_the_vgg16_of_ilsvrc_is_the_start_of_a_training(trunk_file: bytes, vgg: Layers) -> None:
    fc8 = [np.empty((1000, 4096), np.float32), np.empty(1000, np.float32)]
    data = trunk_file + caffemodel({"fc8": fc8})
    with torch.device("meta"):
        net = fcn.FCN("vgg16", 3)
    net.to_empty(device="cpu")
    done = transplant(net, "vgg16.caffemodel", Classes.named("abc"), lambda _: data)
    assert (done.input, done.from_stride, done.coerced) == (CAFFE, None, ())
    assert set(done.left) == {name for name in net.state_dict() if "score" in name}
    for own, released in (
        ("trunk.features.0", "conv1_1"),
        ("head.fc6", "fc6"),
        ("head.fc7", "fc7"),
    ):
        for kind, array in zip(("weight", "bias"), vgg[released], strict=True):
            assert torch.equal(net.get_parameter(f"{own}.{kind}"), torch.from_numpy(array))


def test_a_loaded_network_can_be_trained_and_saved(alexnet: Layers) -> None:
    net = fcn.load_caffemodel(caffemodel(alexnet))
    assert all(parameter.requires_grad for parameter in net.parameters())
    file = io.BytesIO()
    fcn.save(fcn.Model(net, Classes.named(map(str, range(21))), RELEASE), file)
    again = fcn.load(file.getvalue()).net
    assert again.geometry == "reference"
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in net.state_dict().items())


def test_a_caffenet_of_2014_is_the_start_of_a_training(alexnet: Layers) -> None:
    """The classifier's file: V1 layers, four axes for every shape, Linear layers flat."""
    layers = {name: arrays for name, arrays in alexnet.items() if name.startswith(("conv", "fc"))}
    for name in ("fc6", "fc7"):
        weight, bias = layers[name]
        layers[name] = [weight.reshape(1, 1, 4096, -1), bias.reshape(1, 1, 1, -1)]
    layers["fc8"] = [np.zeros((1, 1, 10, 4096), "f4"), np.zeros((1, 1, 1, 10), "f4")]
    data = caffemodel(layers, v1=True)
    net = fcn.FCN("caffenet", 3)
    done = transplant(net, "caffenet.caffemodel", Classes.named("abc"), lambda _: data)
    assert done.input == CAFFE
    assert done.from_stride is None
    assert set(done.left) == {name for name in net.state_dict() if "score" in name}
    assert {"head.fc6.weight", "head.fc7.weight"} <= set(done.coerced) <= set(done.copied)
    for own, released in (("trunk.features.conv4", "conv4"), ("head.fc6", "fc6")):
        expected = torch.from_numpy(alexnet[released][0])
        assert torch.equal(net.state_dict()[f"{own}.weight"], expected)
    with pytest.raises(CheckpointError, match=r"an ILSVRC classifier .* use it as init"):
        fcn.load_caffemodel(data)
    for backbone, reason in (
        ("resnet18", "VGG16 or CaffeNet; backbone=resnet18 was asked"),
        ("vgg16", "fc6.weight is 1 x 1 x 4096 x 9216, expected 4096 x 512 x 7 x 7"),
    ):
        with torch.device("meta"):
            other = fcn.FCN(backbone, 3)
        with pytest.raises(CheckpointError, match=reason):
            transplant(other, "x", Classes.named("abc"), lambda _: data)


def test_a_released_fcn_is_the_start_of_a_finer_one(alexnet: Layers) -> None:
    data = caffemodel(alexnet)
    classes = Classes.named(map(str, range(21)))
    net = fcn.FCN("caffenet", 21, 16)
    done = transplant(net, "x", classes, lambda _: data)
    assert (done.input, done.from_stride) == (RELEASE, 32)
    assert torch.equal(net.score_fr.bias, torch.from_numpy(alexnet["score_fr"][1]))
    other = fcn.FCN("caffenet", 2)
    with pytest.raises(CheckpointError, match=r"of 21 classes, but the dataset has 2 \(a, b\)"):
        transplant(other, "x", Classes.named("ab"), lambda _: data)
    transplant(other, "x", Classes.named("ab"), lambda _: data, init_classes="by_name")
    assert not other.score_fr.weight.any()
    fc7 = torch.from_numpy(alexnet["fc7"][0])
    assert torch.equal(other.head.fc7.weight, fc7)


def small(**changes: list[np.ndarray] | None) -> bytes:
    """A file of AlexNet's first and last layers, for what is decided before the others."""
    layers = {
        "conv1": [np.zeros((96, 3, 11, 11), "f4"), np.zeros(96, "f4")],
        "score_fr": [np.zeros((21, 4096, 1, 1), "f4"), np.zeros(21, "f4")],
        "upscore": [bilinear(21, 63)],
    } | changes
    return caffemodel({name: arrays for name, arrays in layers.items() if arrays is not None})


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (small(), r"conv2.weight is absent; expected 256 x 48 x 5 x 5"),
        (
            small(conv1=[np.zeros((96, 3, 7, 7), "f4"), np.zeros(96, "f4")]),
            "conv1.weight is 96 x 3 x 7 x 7, expected 96 x 3 x 11 x 11",
        ),
        (small(conv1=[np.zeros(4, "f4")]), "conv1.weight is 4, expected four axes"),
        (small(conv1=None), "no released network: expected a first layer conv1_1 or"),
        (small(score_fr=None), "'score_fr' is absent"),
        (small(norm9=[np.zeros(4, "f4")]), "unknown layer: found norm9.weight, 4"),
        (small(upscore=[bilinear(21, 64)]), "64 x 64, expected kernels 63 x 63"),
        (small(upscore=[np.zeros((21, 3, 63, 63), "f4")]), "a kernel for every pair of classes"),
        (
            small(score_pool4=[np.zeros((21, 256, 1, 1), "f4")], upscore2=[MIXED]),
            "upscore2.weight mixes classes",
        ),
        (
            small(score_pool4=[np.zeros((21, 256, 1, 1), "f4")], scale_pool4=[np.ones(256, "f4")]),
            "'scale_pool4' scales by 1 to 1, expected 0.01",
        ),
        (
            small(conv1=None, conv1_1color=[np.zeros(4, "f4")], conv1_1hha=[np.zeros(4, "f4")]),
            "names end in 'color': conv1_1.weight is 4, expected four axes",
        ),
        (
            small(
                conv1=None, conv1_1color=[np.zeros((64, 3, 3, 3), "f4")], upscore=[bilinear(21, 64)]
            ),
            "names end in 'color': conv1_1.bias is absent",
        ),
        (
            small(score_fr=None, score_fr_sem=SCORES),
            "conv2.weight is absent",
        ),
        (
            small(
                **{f"score_fr_{head}": SCORES for head in ("sem", "geo")},
                upscore_sem=[bilinear(3, 64)],
            ),
            "layer upscore_geo is absent, but upscore_sem is there",
        ),
        (
            small(score_fr_sem=SCORES, score_fr_geo=[np.zeros((3, 512, 1, 1), "f4")]),
            "the heads of score_fr do not fit together",
        ),
    ],
)
def test_other_networks_are_named_layer_by_layer(data: bytes, reason: str) -> None:
    with pytest.raises(CheckpointError, match=reason):
        fcn.load_caffemodel(data)


@pytest.mark.parametrize("name", ["score_fr", "upscore", "scale_pool4"])
def test_weights_that_are_no_floats_are_refused(name: str) -> None:
    state = {
        "conv1_1.weight": torch.zeros(64, 3, 3, 3),
        "score_fr.weight": torch.zeros(2, 4096, 1, 1),
        f"{name}.weight": torch.zeros(2, 1, 64, 64, dtype=torch.int64),
    }
    file = io.BytesIO()
    torch.save(state, file)
    with pytest.raises(CheckpointError, match=rf"{name}.weight holds torch.int64, expected floats"):
        fcn.load_torchfcn(file.getvalue())
