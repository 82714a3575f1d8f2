"""The fully convolutional network of Long, Shelhamer and Darrell.

Their figure 3, FCN-8s on VGG16, in the names of this module:

    image ── trunk ──┬── pool3 ─────┬── pool4 ─────┬── pool5
                     │ 1/8          │ 1/16         │ 1/32
                     │              │             head            fc6, fc7
                     │              │             score_fr
                     │              │              │ 1/32
                     │          score_pool ─ + ─ upscore2         fuse["16"]
                     │                       │ 1/16
                 score_pool ────── + ─── upscore2                 fuse["8"]
                                   │ 1/8
                                upscore ── crop ── scores 1/1

FCN-16s ends after the first sum and FCN-32s before it, with an upscore of 16 and of 32. Other
trunks have other maps in the places of the pools (`fcn.trunks`).
"""

import operator
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn

from fcn import geometry as places
from fcn.geometry import CoordinateMap
from fcn.trunks import Geometry, build
from fcn.upsample import Upscore, fit

AT_ONCE = 0.01
"""What the authors' at-once training multiplies pool4 by before it is scored, and pool3 twice:
0.01 and 0.0001, about what levels the activations of the maps."""


class Fuse(nn.Module):
    """Adds the scores of a finer map to upsampled coarse ones: the paper's skip.

    Args:
        num_classes: C.
        channels: Channels of the finer map.
        source: Coordinate map of the coarse scores.
        skip: Coordinate map of the finer map.
        scale: Multiplies the finer map before it is scored.
        replicate_border: See `Upscore`.
        learnable: See `Upscore`.
    """

    def __init__(
        self,
        num_classes: int,
        channels: int,
        source: CoordinateMap,
        skip: CoordinateMap,
        *,
        scale: float = 1.0,
        replicate_border: bool,
        learnable: bool,
    ) -> None:
        super().__init__()
        self.scale = scale
        self.upscore2 = Upscore(
            num_classes, source, skip, replicate_border=replicate_border, learnable=learnable
        )
        self.score_pool = score_layer(channels, num_classes)
        self.map = self.upscore2.map.shifted(max(0, self.upscore2.crop))

    def score(self, pool: Tensor) -> Tensor:
        """Scores ``N x C`` of the finer map alone."""
        score_pool: Tensor = self.score_pool(pool if self.scale == 1 else self.scale * pool)
        return score_pool

    def forward(self, score: Tensor, score_pool: Tensor) -> Tensor:
        """Scores ``N x C`` at the finer stride, from coarse scores and those of the finer map.

        Where the coarse scores reach beyond the finer map they are cropped; where they
        begin inside it (only with the reference geometry), its scores are.
        """
        crop = self.upscore2.crop
        if crop >= 0:
            return self.upscore2.window(score, crop, *score_pool.shape[2:]) + score_pool
        upscore: Tensor = self.upscore2(score)
        return upscore + fit(score_pool, -crop, *upscore.shape[2:])


class FCN(nn.Module):
    """A classifier cast fully convolutional, with skips to finer maps: FCN-32s, 16s, 8s.

    Args:
        backbone: The classifier, a name of `fcn.trunks.TRUNKS`.
        num_classes: C, the channels of the scores.
        stride: Pixels between neighbouring cells of the finest fused map: 32, 16, 8 or 4, as far
            as the trunk has them.
        geometry: "same" for any trunk; "reference" is that of the authors' released nets.
        learnable_upsampling: Train the kernels of the transposed convolutions. On PASCAL
            VOC the authors found no difference.
        in_channels: Channels of the image; for other than 3 the first convolution is new.
        at_once: Scale the finer maps before they are scored (`AT_ONCE`), so that all strides
            can be trained together instead of one after another.
        heads: Names and numbers of classes of several tasks scored over one trunk (SIFT
            Flow: semantic and geometric). Their scores lie one after another in the channels.
        modalities: Channels of the parts of the image that are seen by a trunk each and meet in
            the mean of their scores (NYUDv2: 3 of colour, 3 of HHA). The network's own trunk
            sees the first part; `beside` holds the others.

    Attributes:
        head: The classifier's own layers after the trunk, fc6 and fc7 where it has them: one,
            whatever the number of `heads`.
        coarsest: Stride of the deepest map; windows that start at its multiples see the same
            grid as the whole image.
        field: Side in pixels of the square that a score depends on.
        sees_everything: a score depends on the whole image besides, through gates that pool
            over all of it (squeeze and excitation).
        beside: A network for each further modality, of which only the score maps are used.

    Raises:
        ValueError: Unknown backbone, a stride it lacks, no class, no channel, heads whose
            classes are not ``num_classes`` together, or modalities whose channels are not
            ``in_channels`` together.
    """

    def __init__(
        self,
        backbone: str = "vgg16",
        num_classes: int = 21,
        stride: int = 8,
        geometry: Geometry = "same",
        *,
        learnable_upsampling: bool = False,
        in_channels: int = 3,
        at_once: bool = False,
        heads: Mapping[str, int] | None = None,
        modalities: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("num_classes", num_classes), ("in_channels", in_channels)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        sizes = [num_classes] if heads is None else list(heads.values())
        if sum(sizes) != num_classes or min(sizes) < 1:
            raise ValueError(f"num_classes must be that of all heads {heads}, not {num_classes}")
        parts = [in_channels] if modalities is None else list(modalities)
        if sum(parts) != in_channels or min(parts) < 1:
            raise ValueError(
                f"in_channels must be those of all modalities {modalities}, not {in_channels}"
            )
        self.backbone, self.num_classes, self.stride = backbone, num_classes, stride
        self.geometry: Geometry = geometry
        self.learnable_upsampling = learnable_upsampling
        self.in_channels, self.at_once = in_channels, at_once
        self.heads = None if heads is None else dict(heads)
        self.modalities = None if modalities is None else tuple(modalities)

        self.trunk, self.head = build(backbone, stride, geometry, parts[0])
        *skips, last = places.trace(self.trunk)
        *channels, width = _channels(self.trunk, self.head, parts[0])
        options: dict[str, Any] = {
            "replicate_border": geometry == "same",
            "learnable": learnable_upsampling,
        }
        place = places.after(self.head, last)
        self.coarsest = place.stride
        self.score_fr = score_layer(width, num_classes)
        self.fuse = nn.ModuleDict()
        scale = 1.0
        for skip, width in zip(reversed(skips), reversed(channels), strict=True):
            scale *= AT_ONCE if at_once else 1.0
            fuse = Fuse(num_classes, width, place, skip, scale=scale, **options)
            self.fuse[str(skip.stride)] = fuse
            place = fuse.map
        self.upscore = Upscore(num_classes, place, places.IMAGE, **options)
        self.field = self.upscore.map.field
        self.sees_everything = any(isinstance(m, nn.AdaptiveAvgPool2d) for m in _used(self.trunk))
        self.beside = nn.ModuleList(
            FCN(backbone, num_classes, stride, geometry, in_channels=part, at_once=at_once)
            for part in parts[1:]
        )

    def forward(self, image: Tensor) -> Tensor:
        """Scores ``N x C x H x W`` of a normalised image batch ``N x in_channels x H x W``."""
        score = self.score(image)  # 1/8
        return self.upscore.window(score, self.upscore.crop, *image.shape[2:])  # 1/1

    def score(self, image: Tensor) -> Tensor:
        """The fused scores ``N x C x h x w`` at the network's stride, before the last upscore."""
        return self.fused(self.score_maps(image))

    def score_maps(self, image: Tensor) -> list[Tensor]:
        """Score maps ``N x C x h x w`` of all strides, coarsest first, before they are fused.

        Of several modalities they are the mean of theirs: late fusion, as ``score_fused`` of
        the authors' ``nyud-fcn32s-color-hha``, whose coefficients are 0.5 and 0.5.
        """
        if self.modalities is None:
            return self._own_score_maps(image)
        beside: list[Any] = list(self.beside)
        ways = [self._own_score_maps, *(net.score_maps for net in beside)]
        starts = [0, *accumulate(self.modalities[:-1])]
        parts = zip(ways, starts, self.modalities, strict=True)
        maps = [way(torch.narrow(image, 1, start, num)) for way, start, num in parts]
        return [reduce(operator.add, same) * (1 / len(maps)) for same in zip(*maps, strict=True)]

    def _own_score_maps(self, image: Tensor) -> list[Tensor]:
        """`score_maps` of the first modality alone."""
        *skips, last = self.trunk(image).values()  # 1/8, 1/16, 1/32
        fuses: list[Any] = list(self.fuse.values())
        pools = zip(fuses, reversed(skips), strict=True)
        return [self.score_fr(self.head(last)), *(fuse.score(pool) for fuse, pool in pools)]

    def fused(self, score_maps: Sequence[Tensor]) -> Tensor:
        """One score map at the network's stride, of those that `score_maps` gives."""
        score, *finer = score_maps  # 1/32
        for fuse, score_pool in zip(self.fuse.values(), finer, strict=True):
            score = fuse(score, score_pool)  # 1/16, then 1/8
        return score

    def split(self, scores: Tensor) -> dict[str, Tensor]:
        """Scores ``N x C x H x W`` by task (`heads`), each with its own classes.

        Raises:
            ValueError: The network was built without `heads`: it has one task, without a name.
        """
        if self.heads is None:
            raise ValueError("the network has one task; its scores are all of it")
        parts = torch.split(scores, list(self.heads.values()), dim=1)
        return dict(zip(self.heads, parts, strict=True))


def _used(trunk: fx.GraphModule) -> Iterator[nn.Module]:
    """The modules that a traced trunk calls, with those inside them."""
    for node in trunk.graph.nodes:
        if node.op == "call_module":
            yield from trunk.get_submodule(str(node.target)).modules()


def score_layer(channels: int, num_classes: int) -> nn.Conv2d:
    """A 1 x 1 convolution to class scores, zero at first, as in the authors' surgery."""
    score = nn.Conv2d(channels, num_classes, 1)
    assert score.bias is not None
    nn.init.zeros_(score.weight)
    nn.init.zeros_(score.bias)
    return score


def _channels(trunk: fx.GraphModule, head: nn.Sequential, in_channels: int) -> list[int]:
    """Channels of the trunk's maps, the last one's after the head."""

    def width(node: fx.Node) -> int:
        """Channels of a map: those of the layers that it comes from, which no run has to tell."""
        if node.op == "placeholder":
            return in_channels
        layers = (
            trunk.get_submodule(str(node.target)) if node.op == "call_module" else nn.Identity()
        )
        if widths := _widths(layers):
            return widths[-1]
        if node.target is torch.cat:
            return sum(map(width, node.all_input_nodes))
        return width(node.all_input_nodes[0])

    *_, output = trunk.graph.nodes
    *skips, last = map(width, output.all_input_nodes)
    return [*skips, *(_widths(head) or [last])[-1:]]


def _widths(layers: nn.Module) -> list[int]:
    """What the convolutions of some layers give, in their order."""
    return [layer.out_channels for layer in layers.modules() if isinstance(layer, nn.Conv2d)]
