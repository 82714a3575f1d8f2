from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from fcn.model import FCN
from fcn.trunks import TRUNKS, build, classifier, convolutionalise

PARAMETERS = {32: 134_346_581, 16: 134_357_354, 8: 134_362_751}


@pytest.mark.parametrize(("stride", "expected"), PARAMETERS.items())
def test_vgg16_has_the_parameters_of_the_paper(stride: int, expected: int) -> None:
    with torch.device("meta"):
        net = FCN("vgg16", 21, stride)
    assert sum(p.numel() for p in net.parameters()) == expected


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18", "mobilenet_v3_large"])
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 31), (64, 96)])
def test_scores_have_the_size_of_the_image(backbone: str, size: tuple[int, int]) -> None:
    net = FCN(backbone, 3).eval()
    assert net(torch.rand(2, 3, *size)).shape == (2, 3, *size)


@pytest.mark.parametrize("size", [(1, 1), (45, 70)])
@pytest.mark.parametrize("geometry", ["same", "reference"])
def test_vgg_takes_images_of_any_size(size: tuple[int, int], geometry: str) -> None:
    net = FCN("vgg11", 2, geometry=geometry).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        assert net(torch.rand(1, 3, *size)).shape == (1, 2, *size)


def test_a_new_network_scores_zero() -> None:
    net = FCN("resnet18", 5).eval()
    assert not net(torch.rand(1, 3, 40, 50)).any()


@torch.no_grad()
def test_a_finer_network_starts_with_the_coarser_prediction() -> None:
    torch.manual_seed(0)
    coarse, fine = FCN("resnet18", 4, 32).eval(), FCN("resnet18", 4, 16).eval()
    torch.nn.init.normal_(coarse.score_fr.weight)
    fine.load_state_dict(coarse.state_dict(), strict=False)
    image = torch.rand(1, 3, 128, 160)
    expected, found = (net(image)[..., 32:-32, 32:-32] for net in (coarse, fine))
    assert float((expected - found).abs().mean()) < 0.1 * float(expected.std())


def test_scores_fuse_by_a_sum() -> None:
    net = FCN("resnet18", 2, 16).eval()
    torch.nn.init.normal_(net.score_fr.weight)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        without = net(image)
        net.fuse["16"].score_pool.bias.fill_(3.0)  # type: ignore[union-attr, operator]
        torch.testing.assert_close(net(image), without + 3)


def test_convolutionalised_layer_gives_the_linear_layers_outputs() -> None:
    linear = torch.nn.Linear(8 * 3 * 3, 5)
    conv = convolutionalise(linear, 3)
    grid = torch.randn(2, 8, 3, 3)
    torch.testing.assert_close(conv(grid)[..., 0, 0], linear(grid.flatten(1)))


def test_vgg_head_is_two_convolutions_with_elementwise_dropout() -> None:
    with torch.device("meta"):
        net = FCN("vgg16")
    assert net.head.fc6.weight.shape == (4096, 512, 7, 7)
    assert net.head.fc7.weight.shape == (4096, 4096, 1, 1)
    assert type(net.head.drop6) is type(net.head.drop7) is torch.nn.Dropout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vgg17",), "unknown backbone 'vgg17'; known are alexnet, caffenet"),
        (("squeezenet1_1", 2, 32), r"squeezenet1_1 has strides \[4, 8, 16\], not 32"),
        (("vgg16", 0), "num_classes must be at least 1, not 0"),
        (("resnet18", 2, 8, "reference"), "VGG, AlexNet and CaffeNet, not for resnet18"),
    ],
)
def test_impossible_networks_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCN(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, not 0"),
        ({"heads": {"a": 2, "b": 1}}, "num_classes must be that of all heads .* not 2"),
        ({"heads": {"a": 3, "b": -1}}, "num_classes must be that of all heads"),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCN("resnet18", 2, **options)


def test_at_once_scales_the_finer_maps_before_they_are_scored() -> None:
    torch.manual_seed(0)
    plain, at_once = FCN("resnet18", 2).eval(), FCN("resnet18", 2, at_once=True).eval()
    at_once.load_state_dict(plain.state_dict())
    for net in (plain, at_once):
        for fuse, scale in zip(net.fuse.values(), (0.01, 0.0001), strict=True):
            torch.nn.init.ones_(fuse.score_pool.weight)  # type: ignore[union-attr, arg-type]
            if net is plain:
                fuse.score_pool.weight.data.mul_(scale)  # type: ignore[union-attr, operator]
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = plain(image)
        assert expected.any()
        torch.testing.assert_close(at_once(image), expected)


@pytest.mark.parametrize(
    ("backbone", "in_channels"), [("squeezenet1_1", 1), ("alexnet", 4), ("googlenet", 4)]
)
def test_images_may_have_other_channels(backbone: str, in_channels: int) -> None:
    with torch.device("meta"):
        net = FCN(backbone, 2, 16, in_channels=in_channels).eval()
        rgb = FCN(backbone, 2, 16)
        assert net(torch.empty(2, in_channels, 1, 1)).shape == (2, 2, 1, 1)
    names = [n for n, p in rgb.named_parameters() if p.shape != net.get_parameter(n).shape]
    assert len(names) == 1
    assert net.get_parameter(names[0]).shape[1] == in_channels


@torch.no_grad()
def test_heads_share_the_trunk_and_lie_one_after_another() -> None:
    net = FCN("resnet18", 5, 16, heads={"semantic": 3, "geometric": 2}).eval()
    torch.nn.init.normal_(net.score_fr.weight)
    scores = net(torch.rand(1, 3, 40, 50))
    parts = net.split(scores)
    assert {name: part.shape[1] for name, part in parts.items()} == net.heads
    assert torch.equal(torch.cat(list(parts.values()), dim=1), scores)
    with pytest.raises(ValueError, match="one task"):
        FCN("resnet18", 5, 16).split(scores)


@pytest.mark.parametrize("backbone", TRUNKS)
def test_maps_have_one_cell_for_every_stride_begun(backbone: str) -> None:
    with torch.device("meta"):
        trunk, _ = build(backbone, min(TRUNKS[backbone].nodes), "same")
        maps = trunk.eval()(torch.empty(1, 3, 97, 131))
    for stride, cells in maps.items():
        expected = -(-97 // int(stride)), -(-131 // int(stride))
        assert cells.shape[2:] == expected


def googlenet_map(net: Any, x: Tensor) -> Tensor:
    """inception5b, with every pooling of 3 x 3 padded on both sides."""
    for name, layer in net.named_children():
        if name in {"maxpool1", "maxpool2", "maxpool3"}:
            x = functional.max_pool2d(x, 3, 2, padding=1)
        elif name == "avgpool":
            return x
        elif not name.startswith("aux"):
            x = layer(x)
    raise AssertionError("no pooling at the end")


LAST_MAPS = {
    "regnet_x_400mf": lambda net, x: net.trunk_output(net.stem(x)),
    "mobilenet_v3_small": lambda net, x: net.features(x),
    "googlenet": googlenet_map,
}


@torch.no_grad()
@pytest.mark.parametrize("backbone", LAST_MAPS)
def test_the_smallest_images_are_scored_as_the_classifier_sees_them(backbone: str) -> None:
    """Of 1 x 1 every map has one cell, and the scores are the sum of what is scored there."""
    torch.manual_seed(0)
    net = FCN(backbone, 3).eval()
    for layer in [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]:
        torch.nn.init.normal_(layer.weight)  # type: ignore[arg-type]
    source = classifier(backbone).eval()
    source.load_state_dict(net.trunk.state_dict(), strict=False)
    image = torch.randn(2, 3, 1, 40)
    for size in (1, 40):
        part = image[..., :size]
        *_, last = net.trunk(part).values()
        assert last.shape[2:] == (1, -(-size // 32))
        assert last.std() > 0
        torch.testing.assert_close(last, LAST_MAPS[backbone](source, part))
        assert net(part).shape == (2, 3, 1, size)
    pixel = image[..., :1]
    torch.testing.assert_close(net(pixel), sum(net.score_maps(pixel)))


@torch.no_grad()
def test_constant_scores_stay_constant_to_the_border() -> None:
    """In the reference geometry they fade: AlexNet's corner lies 19/32 within its first cell."""
    bias = torch.tensor([3.0, -2.0])
    net = FCN("squeezenet1_1", 2, 4).eval()
    for layer in [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]:
        layer.bias.copy_(bias)  # type: ignore[union-attr, operator]
    flat = (3 * bias)[None, :, None, None].expand(1, 2, 37, 50)  # of strides 16, 8 and 4
    torch.testing.assert_close(net(torch.randn(1, 3, 37, 50)), flat)

    with torch.device("meta"):
        net = FCN("alexnet", 2, 32, "reference")
    net = net.to_empty(device="cpu").eval()
    for parameter in net.parameters():
        parameter.zero_()
    net.score_fr.bias.copy_(bias)  # type: ignore[union-attr]
    scores = net(torch.randn(1, 3, 64, 70))[0]
    torch.testing.assert_close(scores[:, 0, 0], bias * (19 / 32) ** 2)
    torch.testing.assert_close(scores[:, 0, 32], bias * 19 / 32)
    torch.testing.assert_close(scores[:, 32, 32], bias)
