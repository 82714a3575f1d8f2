import pytest
import torch

from fcn.model import FCN
from fcn.trunks import TRUNKS, build, convolutionalise

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
        (("vgg17",), "unknown backbone 'vgg17'; known are vgg11"),
        (("squeezenet1_1", 2, 32), r"squeezenet1_1 has strides \[4, 8, 16\], not 32"),
        (("vgg16", 0), "num_classes must be at least 1, not 0"),
        (("resnet18", 2, 8, "reference"), "not for resnet18"),
    ],
)
def test_impossible_networks_are_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FCN(*arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("backbone", TRUNKS)
def test_maps_have_one_cell_for_every_stride_begun(backbone: str) -> None:
    with torch.device("meta"):
        trunk, _ = build(backbone, min(TRUNKS[backbone].nodes), "same")
        maps = trunk.eval()(torch.empty(1, 3, 97, 131))
    for stride, cells in maps.items():
        expected = -(-97 // int(stride)), -(-131 // int(stride))
        assert cells.shape[2:] == expected
