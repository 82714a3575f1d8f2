"""Where every cell of every map lies on the image.

Each layer places the cells of its output on a regular grid over its input. Composed over
the layers of a network, the grids tell exactly which pixel a cell of a score map stands
for, and every crop of a fully convolutional network is a difference of two of them: none
is typed in anywhere.

Coordinates are in pixels, pixel centres at whole numbers; kernels and paddings are square,
so that one number serves both axes.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import fx, nn
from torch.nn import functional

_UNMOVED = (
    nn.ReLU,
    nn.Hardswish,
    nn.Hardsigmoid,
    nn.BatchNorm2d,
    nn.LocalResponseNorm,
    nn.Dropout,
    nn.Identity,
)
"""Layers whose cells lie where those of their input do, and see no more."""

_JOINS = frozenset({operator.add, operator.iadd, operator.mul, torch.cat, functional.relu})
"""Functions of which the same holds: ``torch.cat`` of channels."""


@dataclass(frozen=True)
class CoordinateMap:
    """Cell ``i`` of a map lies at pixel ``stride * i + offset`` and sees ``field`` pixels.

    Source: the receptive-field arithmetic of Long, Shelhamer and Darrell (CVPR 2015, section
    3), with the offset kept beside stride and field.
    """

    stride: int = 1
    offset: float = 0.0
    field: int = 1

    def conv(self, kernel: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Self:
        """The map after a convolution or pooling."""
        reach = (kernel - 1) * dilation
        return type(self)(
            self.stride * stride,
            self.offset + self.stride * (reach / 2 - padding),
            self.field + self.stride * reach,
        )

    def transposed(self, kernel: int, stride: int, centre: float) -> Self:
        """The map after a transposed convolution whose kernel weighs around ``centre``.

        Raises:
            ValueError: The map's stride is no multiple of ``stride``.
        """
        if self.stride % stride:
            raise ValueError(f"stride {self.stride} cannot be upsampled {stride} times")
        fine = self.stride // stride
        taps = -(-kernel // stride)
        return type(self)(fine, self.offset - fine * centre, self.field + (taps - 1) * self.stride)

    def shifted(self, cells: int) -> Self:
        """The map that starts ``cells`` later (cropped), or earlier (padded) if negative."""
        return type(self)(self.stride, self.offset + cells * self.stride, self.field)

    def position(self, other: "CoordinateMap") -> float:
        """Where cell 0 of ``other`` lies, counted in cells of this map."""
        return (other.offset - self.offset) / self.stride


IMAGE = CoordinateMap()
"""The image itself: cell ``i`` is pixel ``i``."""


def window(layer: nn.Module) -> dict[str, int] | None:
    """Kernel, stride, padding and dilation of a convolution or pooling, else None.

    Raises:
        ValueError: a window that is not square.
    """
    if not isinstance(layer, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
        return None
    values = {
        "kernel": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": getattr(layer, "dilation", 1),
    }
    return {name: _square(value, layer) for name, value in values.items()}


def _square(value: Any, layer: nn.Module) -> int:
    sides = set(value) if isinstance(value, tuple) else {value}
    if len(sides) != 1:
        raise ValueError(f"only square windows have one coordinate map for both axes: {layer}")
    return int(sides.pop())


def after(layer: nn.Module, start: CoordinateMap = IMAGE) -> CoordinateMap:
    """The map after a layer, or a chain of them (`torch.nn.Sequential`), that begins at ``start``.

    An activation or a normalisation leaves the map as it is. A layer that is none of PyTorch's
    own is traced.

    Raises:
        ValueError: a layer of which it is not known where its cells lie.
    """
    if isinstance(layer, nn.Sequential):
        for child in layer:
            start = after(child, start)
        return start
    if isinstance(layer, _UNMOVED):
        return start
    if geometry := window(layer):
        return start.conv(**geometry)
    if type(layer).__module__.startswith("torch.nn."):
        raise _unknown(f"the layer {layer}")
    (place,) = trace(fx.symbolic_trace(layer), start)
    return place


def trace(graph: fx.GraphModule, start: CoordinateMap = IMAGE) -> list[CoordinateMap]:
    """The maps of a traced trunk's outputs, in the order of its outputs.

    Where paths join (a residual sum, a concatenation), their maps must agree, except for
    gates computed from a global pooling, which lie nowhere.

    Raises:
        ValueError: Paths join that lie at different places, or it is not known where the cells
            of a node lie.
    """
    modules = dict(graph.named_modules())
    maps: dict[fx.Node, CoordinateMap | None] = {}
    for node in graph.graph.nodes:
        if node.op == "placeholder":
            maps[node] = start
        elif node.op == "output":
            outputs = node.args[0]
            nodes = outputs.values() if isinstance(outputs, Mapping) else node.all_input_nodes
            return [_placed(maps[output], output) for output in nodes]
        else:
            maps[node] = _node_map(node, modules, [maps[n] for n in node.all_input_nodes])
    raise ValueError("the traced trunk has no output")


def _node_map(
    node: fx.Node, modules: Mapping[str, nn.Module], inputs: list[CoordinateMap | None]
) -> CoordinateMap | None:
    layer = modules.get(str(node.target)) if node.op == "call_module" else None
    if isinstance(layer, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        return None
    placed = [place for place in inputs if place is not None]
    if not placed:
        return None
    if len({(place.stride, place.offset) for place in placed}) > 1:
        raise ValueError(f"paths joined by {node.name} lie at different places: {placed}")
    joined = max(placed, key=lambda place: place.field)
    if layer is not None:
        return after(layer, joined)
    if node.target not in _JOINS:
        raise _unknown(f"node {node.name} ({node.format_node()})")
    return joined


def _unknown(what: str) -> ValueError:
    return ValueError(
        f"it is not known where the cells of {what} lie: take a layer with a window "
        "(torch.nn.MaxPool2d for a function), or name it in fcn.geometry if it moves no cell"
    )


def _placed(place: CoordinateMap | None, node: fx.Node) -> CoordinateMap:
    if place is None:
        raise ValueError(f"{node.name} comes after a global pooling and lies nowhere")
    return place
