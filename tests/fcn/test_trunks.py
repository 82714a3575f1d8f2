"""A trunk, its head and a 1 x 1 score are the classifier, cast fully convolutional."""

from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.vgg import VGG, cfgs, make_layers

from fcn.geometry import after, trace
from fcn.trunks import (
    TRUNKS,
    Backbone,
    classifier,
    convolutionalise,
    dropout_head,
    extract,
    linear_head,
)

LINEAR = [name for name, row in TRUNKS.items() if row.head is linear_head]
AVERAGED = [name for name in TRUNKS if name.startswith(("resnet", "googlenet", "regnet"))]
GATED = ["mobilenet_v3_large", "mobilenet_v3_small"]

SHAPES = dict(zip("ABDE", ("vgg11", "vgg13", "vgg16", "vgg19"), strict=True))


def random_classifier(name: str) -> nn.Module:
    """A classifier whose activations neither vanish nor explode."""
    torch.manual_seed(1)
    with torch.device("meta"):  # each layer is given its weights below, once
        net = thin_vgg(name) if name.startswith("vgg") else classifier(name)
    net.to_empty(device="cpu")
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.normal_(layer.bias, std=0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.reset_parameters()
            layer.momentum = 1.0
    with torch.no_grad():
        net.train()(torch.randn(4, 3, 64, 64))  # statistics of batch normalisations
    return net.eval()


def thin_vgg(name: str) -> nn.Module:
    """A VGG with a sixteenth of the channels: the same layers under the same names."""
    shape = next(key for key, vgg in SHAPES.items() if name.startswith(vgg))
    layers = [width if width == "M" else int(width) // 16 for width in cfgs[shape]]
    net = VGG(make_layers(layers, batch_norm=name.endswith("_bn")), num_classes=40)
    net.classifier[0] = nn.Linear(32 * 7 * 7, 64)
    net.classifier[3] = nn.Linear(64, 64)
    net.classifier[6] = nn.Linear(64, 40)
    return net


def own_size(name: str) -> int:
    return 227 if name == "caffenet" else 224


def convolutional(net: nn.Module, name: str) -> nn.Module:
    """Trunk, head and the classifier's last layer as a 1 x 1 convolution, its own paddings."""
    row = TRUNKS[name]
    *_, last = (layer for layer in net.modules() if isinstance(layer, nn.Linear))

    class Scores(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            coarsest = max(row.nodes)
            self.trunk, self.head = extract(net, row, coarsest).eval(), row.head(net)
            self.score = convolutionalise(last, 1)

        def forward(self, image: Tensor) -> Tensor:
            (fine,) = self.trunk(image).values()
            return self.score(self.head(fine))

    return Scores().eval()


def assert_equal_logits(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 1e-2, "degenerate logits prove nothing"
    assert float((found - expected).abs().max()) <= 1e-4 * float(expected.abs().max())


@torch.no_grad()
@pytest.mark.parametrize("name", LINEAR)
def test_at_its_own_size_the_scores_are_the_classifiers_logits(name: str) -> None:
    net = random_classifier(name)
    image = torch.randn(2, 3, own_size(name), own_size(name))
    scores = convolutional(net, name)(image)
    assert scores.shape[2:] == (1, 1)
    assert_equal_logits(scores[..., 0, 0], net(image))


@torch.no_grad()
@pytest.mark.parametrize("name", LINEAR)
def test_every_cell_is_the_classifier_on_its_window(name: str) -> None:
    """Proven without paddings, which a classifier adds around each window anew.

    With paddings the classifier sees zeros beside its window where the map sees the image, so
    the two differ by what they were given, not by how it is computed. Without, the size of
    the classifier is its receptive field, and no cell is an exception.
    """
    net = random_classifier(name)
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding = (0, 0)
    whole = convolutional(net, name)
    (pool5,) = trace(whole.trunk)
    place = after(whole.head, pool5)
    side = place.field
    image = torch.randn(1, 3, side + 32 + 5, side + 64)
    scores = whole(image)
    assert scores.shape[2] >= 2
    assert scores.shape[3] >= 3
    for row in range(2):
        for column in range(3):
            top, left = (
                round(place.stride * cell + place.offset - (side - 1) / 2) for cell in (row, column)
            )
            logits = net(image[:, :, top : top + side, left : left + side])
            assert_equal_logits(scores[..., row, column], logits)


@torch.no_grad()
@pytest.mark.parametrize("name", AVERAGED)
def test_logits_of_a_pooled_classifier_are_the_mean_of_the_scores(name: str) -> None:
    """Pooling and the last layer are linear: to score and then average is the same."""
    net = random_classifier(name)
    whole = convolutional(net, name)
    for size in ((224, 224), (96, 160)):
        image = torch.randn(1, 3, *size)
        scores = whole(image)
        assert scores.shape[2:] == (size[0] // 32, size[1] // 32)
        assert_equal_logits(scores.mean(dim=(2, 3)), net(image))


@torch.no_grad()
@pytest.mark.parametrize("size", [(224, 224), (97, 160)])
def test_squeezenet_scores_its_cells_by_itself(size: tuple[int, int]) -> None:
    """SqueezeNet's last layer is a 1 x 1 convolution with a ReLU, averaged afterwards."""
    net = random_classifier("squeezenet1_1")
    row = TRUNKS["squeezenet1_1"]
    assert row.head is dropout_head
    image = torch.randn(1, 3, *size)
    (fine,) = extract(net, row, max(row.nodes)).eval()(image).values()
    _, score, relu, _ = net.classifier  # type: ignore[misc]
    scores = relu(score(row.head(net).eval()(fine)))
    assert_equal_logits(scores.mean(dim=(2, 3)), net(image))


@torch.no_grad()
@pytest.mark.parametrize("name", GATED)
def test_the_last_map_of_a_mobilenet_is_what_its_classifier_sees(name: str) -> None:
    """Two layers with a Hardswish between follow the pooling; the FCN scores what is pooled."""
    net = random_classifier(name)
    image = torch.randn(1, 3, 224, 224)
    (fine,) = extract(net, TRUNKS[name], 32).eval()(image).values()
    assert_equal_logits(net.classifier(fine.mean(dim=(2, 3))), net(image))


@pytest.mark.parametrize("name", TRUNKS)
def test_a_head_has_the_dropout_of_the_classifiers_own_last_layers(name: str) -> None:
    """VGG's and AlexNet's two of 0.5 (fc6, fc7); the one before GoogLeNet's and SqueezeNet's."""
    with torch.device("meta"):
        head = TRUNKS[name].head(classifier(name))
    expected = {"googlenet": [0.2], "squeezenet1_1": [0.5]}.get(name, [])
    found = [layer.p for layer in head.modules() if isinstance(layer, nn.Dropout)]
    assert found == ([0.5, 0.5] if name in LINEAR else expected)


def test_settings_and_forms_offer_every_trunk_of_the_table() -> None:
    assert get_args(Backbone) == tuple(TRUNKS)


def test_every_trunk_is_proven_above() -> None:
    assert {*LINEAR, *AVERAGED, *GATED, "squeezenet1_1"} == set(TRUNKS)


def test_a_convolution_sees_only_maps_of_whole_channels() -> None:
    with pytest.raises(ValueError, match="10 inputs are no map of 3 x 3 cells"):
        convolutionalise(nn.Linear(10, 2), 3)
