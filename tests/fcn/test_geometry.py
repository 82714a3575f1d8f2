"""Every score lies where its coordinate map says: the ramp comes out as itself."""

import operator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from fcn.geometry import CoordinateMap, after, trace, window
from fcn.model import FCN
from fcn.trunks import TRUNKS, linear_head
from fcn.upsample import Upscore

SIZES = [(640, 640), (375, 500), (501, 333), (360, 480), (97, 131)]
SYSTEMS = [(name, stride) for name, row in TRUNKS.items() for stride in row.nodes]
CELLS: dict[tuple[str, int], int] = {}
REFERENCE = [(name, s) for name, s in SYSTEMS if TRUNKS[name].head is linear_head]


class Centred(fx.Interpreter):
    """Runs a graph on one channel of coordinates, each layer reduced to where it looks.

    A convolution becomes the identity at its centre, a maximum an average, a join the mean
    of what it joins; everything without a window passes.
    """

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return centred(self.fetch_attr(target), args[0])

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.cat:
            return torch.stack(list(args[0])).mean(dim=0)
        if target in {operator.add, operator.iadd}:
            return (args[0] + args[1]) / 2
        return args[0]

    def call_method(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return args[0]


def centred(layer: nn.Module, x: Tensor) -> Tensor:
    if isinstance(layer, nn.Sequential):
        for child in layer:
            x = centred(child, x)
        return x
    geometry = window(layer)
    if geometry is None:
        return x
    kernel, stride, padding = geometry["kernel"], geometry["stride"], geometry["padding"]
    if geometry["dilation"] != 1:
        raise AssertionError("no trunk of the table is dilated")
    if kernel == stride == 1:
        return x
    cells = [_num_cells(layer, size) for size in x.shape[2:]]
    after = padding + kernel
    x = extended(extended(x, padding, after).mT, padding, after).mT
    if isinstance(layer, nn.Conv2d):
        first = (kernel - 1) // 2
        taps = x[..., first:, first:], x[..., kernel - 1 - first :, kernel - 1 - first :]
        x = sum(tap[..., ::stride, ::stride] / 2 for tap in _even(taps))
    else:
        x = functional.avg_pool2d(x, kernel, stride)
    return x[..., : cells[0], : cells[1]]


def _even(taps: tuple[Tensor, Tensor]) -> list[Tensor]:
    """The two middle taps, cut to one size; the same one twice for an odd kernel."""
    height, width = (min(tap.shape[axis] for tap in taps) for axis in (2, 3))
    return [tap[..., :height, :width] for tap in taps]


def _num_cells(layer: nn.Module, size: int) -> int:
    """Cells that the real layer makes of ``size``, on one axis; layers alike are asked once."""
    channels = layer.in_channels if isinstance(layer, nn.Conv2d) else 1
    asked = repr(layer), size
    if asked not in CELLS:
        CELLS[asked] = layer(torch.empty(1, channels, size, size, device="meta")).shape[-1]
    return CELLS[asked]


def extended(x: Tensor, before: int, after: int) -> Tensor:
    """Columns continued in a straight line on both sides."""
    slope = x[..., 1:2] - x[..., :1]
    left = x[..., :1] - slope * torch.arange(before, 0, -1, dtype=x.dtype)
    right = x[..., -1:] + slope * torch.arange(1, after + 1, dtype=x.dtype)
    return torch.cat([left, x, right], dim=-1)


class Ramp(nn.Module):
    """The centred stand-in of a trunk or head."""

    def __init__(self, graph: fx.GraphModule) -> None:
        super().__init__()
        self.interpreter = Centred(graph)

    def forward(self, x: Tensor) -> Any:
        return self.interpreter.run(x)


def ramp_error(net: FCN, height: int, width: int) -> float:
    """Largest distance in pixels from a coordinate to itself, on both axes, in the interior."""
    net.trunk = Ramp(net.trunk.eval())  # type: ignore[arg-type]
    net.head = Ramp(fx.symbolic_trace(net.head))  # type: ignore[assignment]
    net.score_fr = nn.Identity()  # type: ignore[assignment]
    for fuse in net.fuse.values():
        fuse.score_pool = nn.Identity()  # type: ignore[union-attr]
    y, x = torch.meshgrid(
        torch.arange(height, dtype=torch.float64),
        torch.arange(width, dtype=torch.float64),
        indexing="ij",
    )
    first, last = 40, 56  # the border is repeated beyond the outermost cells, at every step
    ramps = torch.stack([x, y])
    out = net(ramps[:, None])[:, 0] / (1 + len(net.fuse))
    inside = (out - ramps)[:, first : height - last, first : width - last]
    assert inside.numel() > 0
    return float(inside.abs().max())


@pytest.mark.parametrize(("backbone", "stride"), SYSTEMS)
def test_same_geometry_puts_every_pixel_in_its_place(backbone: str, stride: int) -> None:
    net = light(backbone, stride)
    parts = net.trunk, net.head, net.score_fr
    for height, width in SIZES:
        net.trunk, net.head, net.score_fr = parts  # type: ignore[assignment]
        assert ramp_error(net, height, width) < 1e-9, (height, width)


@pytest.mark.parametrize(("backbone", "stride"), REFERENCE)
def test_reference_geometry_puts_every_pixel_in_its_place(backbone: str, stride: int) -> None:
    net = light(backbone, stride, "reference")
    parts = net.trunk, net.head, net.score_fr
    for height, width in SIZES:
        net.trunk, net.head, net.score_fr = parts  # type: ignore[assignment]
        assert ramp_error(net, height, width) < 1e-9, (height, width)


def test_a_shifted_trunk_is_caught() -> None:
    net = light("resnet18", 8)
    net.upscore.crop += 1
    assert ramp_error(net, 360, 480) == pytest.approx(1)


@pytest.mark.parametrize(
    ("stride", "skip_crops", "crop", "kernel"),
    [(32, [], 19, 64), (16, [5], 27, 32), (8, [5, 9], 31, 16)],
)
def test_crops_of_the_released_networks_come_out(
    stride: int, skip_crops: list[int], crop: int, kernel: int
) -> None:
    net = light("vgg16", stride, "reference")
    assert [-fuse.upscore2.crop for fuse in net.fuse.values()] == skip_crops  # type: ignore[union-attr]
    assert net.upscore.crop == crop
    assert net.upscore.kernel_size == kernel


@pytest.mark.parametrize("backbone", ["caffenet", "alexnet"])
def test_crop_of_the_released_alexnet_comes_out(backbone: str) -> None:
    net = light(backbone, 32, "reference")
    assert (net.upscore.crop, net.upscore.kernel_size) == (18, 63)


@pytest.mark.parametrize(
    ("backbone", "expected"), [("vgg16", 404), ("alexnet", 355), ("caffenet", 355)]
)
def test_receptive_fields_are_those_of_the_paper(backbone: str, expected: int) -> None:
    net = light(backbone, 32)
    (pool5,) = trace(net.trunk)  # type: ignore[arg-type]
    place = after(net.head, pool5)
    assert (place.stride, place.field) == (32, expected)


def test_fc6_of_vgg_is_centred_and_that_of_alexnet_lies_half_a_cell_before() -> None:
    places = {}
    for backbone in ("vgg16", "alexnet"):
        net = light(backbone, 32)
        (pool5,) = trace(net.trunk)  # type: ignore[arg-type]
        places[backbone] = pool5.offset, after(net.head, pool5).offset
    assert places == {"vgg16": (15.5, 15.5), "alexnet": (0, -16)}


def test_googlenet_sees_907_pixels_as_published() -> None:
    """The paper's 907 counts the average pooling, 7 x 7, besides the layers of the FCN.

    Torchvision's GoogLeNet differs from the published one in two places: kernels of 3, not 5,
    in the third branch, and a last max pooling of 2, not 3. It sees 379, 571 with the pooling.
    """
    net = light("googlenet", 32)
    (torchvision,) = trace(net.trunk)  # type: ignore[arg-type]
    assert (torchvision.field, torchvision.conv(7, padding=3).field) == (379, 571)
    for name, layer in net.trunk.named_modules():
        if name.endswith("branch3.1.conv"):
            layer.kernel_size, layer.padding = (5, 5), (2, 2)
    net.trunk.maxpool4.kernel_size, net.trunk.maxpool4.padding = 3, 1
    (published,) = trace(net.trunk)  # type: ignore[arg-type]
    assert published.conv(7, padding=3) == CoordinateMap(32, 0, 907)


@pytest.mark.parametrize("geometry", ["same", "reference"])
@pytest.mark.parametrize("backbone", ["vgg16", "alexnet", "caffenet"])
def test_every_size_goes_through(backbone: str, geometry: str) -> None:
    """What the coarser nets end on, the finest one has too, so that its maps serve all three.

    Maps of one class are small: on "meta" their upsampling takes twenty times as long.
    """
    nets = {stride: light(backbone, stride, geometry).eval() for stride in (32, 16, 8)}
    for side in [*range(1, 40), 63, 64, 65, 97]:
        image = torch.empty(1, 3, side, 131 - side, device="meta")
        maps = [torch.zeros(found.shape) for found in nets[8].score_maps(image)]
        if side in (1, 33, 97):
            for net in nets.values():
                own = [found.shape for found in net.score_maps(image)]
                assert own == [found.shape for found in maps[: len(own)]]
        for count, net in enumerate(nets.values(), start=1):
            score, *finer = maps[:count]
            for fuse, pool in zip(net.fuse.values(), finer, strict=True):
                assert fuse.upscore2.crop < 0 or reaches(fuse.upscore2, score, pool)  # type: ignore[union-attr]
                score = fuse(score, pool)
            assert reaches(net.upscore, score, image)
            net.score = lambda _, score=score: score  # type: ignore[method-assign]
            assert net(image).shape == (1, 1, side, 131 - side)


@pytest.mark.parametrize("backbone", TRUNKS)
def test_the_smallest_maps_reach_over_their_images(backbone: str) -> None:
    """A window has the size that is asked for: beyond the map it would hold zeros."""
    net = light(backbone, min(TRUNKS[backbone].nodes)).eval()
    for size in ((1, 1), (1, 40), (97, 131)):
        image = torch.empty(1, 3, *size, device="meta")
        score, *finer = (torch.zeros(found.shape) for found in net.score_maps(image))
        for fuse, pool in zip(net.fuse.values(), finer, strict=True):
            assert reaches(fuse.upscore2, score, pool)  # type: ignore[arg-type]
            score = fuse(score, pool)
        assert reaches(net.upscore, score, image)


def reaches(upscore: Upscore, score: Tensor, target: Tensor) -> bool:
    """Whether all cells of a finer map lie under upsampled scores."""
    found = upscore(score).shape[2:]
    return all(a >= upscore.crop + b for a, b in zip(found, target.shape[2:], strict=True))


def test_paths_that_lie_at_different_places_cannot_join() -> None:
    class Lopsided(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=0)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"sum": self.left(x) + self.right(x)}

    with pytest.raises(ValueError, match="lie at different places"):
        trace(fx.symbolic_trace(Lopsided()))


def test_windows_must_be_square() -> None:
    with pytest.raises(ValueError, match="square"):
        after(nn.Conv2d(1, 1, (1, 7)))


class Pooled(nn.Module):
    """A trunk of one convolution and of what follows it."""

    def __init__(self, step: Any) -> None:
        super().__init__()
        self.conv, self.step = nn.Conv2d(1, 1, 3, padding=1), step

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"pool": self.step(self.conv(x))}


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (lambda x: functional.max_pool2d(x, 2), "node max_pool2d"),
        (lambda x: x.flip(3), "node flip"),
        (nn.LPPool2d(2, 2), r"the layer LPPool2d"),
        (nn.ConvTranspose2d(1, 1, 2, stride=2), r"the layer ConvTranspose2d"),
    ],
)
def test_what_is_not_known_to_keep_the_cells_in_their_places_is_refused(
    step: Any, name: str
) -> None:
    """A pooling that is no module would be counted as if it had no window."""
    with pytest.raises(ValueError, match=rf"where the cells of {name}.* take a layer"):
        trace(fx.symbolic_trace(Pooled(step)))


def test_a_layer_of_layers_is_seen_into() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pool, self.conv = nn.MaxPool2d(2), nn.Conv2d(1, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(x)
            return x + functional.relu(self.conv(x))

    assert after(Block()) == CoordinateMap().conv(2, 2).conv(3, 1, 1)


def light(backbone: str, stride: int, geometry: Any = "same") -> FCN:
    """A network of one class without memory for its weights."""
    with torch.device("meta"):
        return FCN(backbone, 1, stride, geometry)
