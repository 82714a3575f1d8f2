"""The layers of a network as an ONNX graph, written in no time: for the runtimes of `fcn.backends`.

What is written ends with the score maps of every stride (`FCN.score_maps`): convolutions,
activations and poolings, which runtimes are built for. Fusing and upsampling stay with torch.
For others, `fcn.export` writes whole networks by PyTorch's exporter, which takes much longer.

A convolution with a range (`Model.ranges`) is written for integers: its input is rounded to
uint8, its weights to integers of 7 bits with a scale for every output channel. Maps that reach
it through poolings and concatenations are rounded before those, with one scale, so that these
work on integers too. Batch normalisation goes into the weights.
"""

import operator
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_weights

from fcn.checkpoint import Model, Range
from fcn.geometry import window
from fcn.input import InputSpec
from fcn.protobuf import field

OPSET = 17

# Numbers of fields of ModelProto, GraphProto and TensorProto, in onnx.proto.
_GRAPH, _INITIALIZER, _RAW_DATA = 7, 5, 9

LARGE_BYTES = 1 << 20
"""Of weights that `to_layers_and_weights` leaves out."""

MAX_WEIGHT = 63
"""Largest integer of a weight. Two products with uint8 then fit into 16 bits, into which
processors without VNNI sum them: larger ones would give other scores there."""

_FUNCTIONS: Mapping[Any, str] = {
    operator.add: "Add",
    operator.mul: "Mul",
    functional.relu: "Relu",
    torch.cat: "Concat",
    torch.narrow: "Slice",
}

_ACTIVATIONS: Mapping[type, tuple[str, Mapping[str, float]]] = {
    nn.ReLU: ("Relu", {}),
    nn.Hardswish: ("HardSwish", {}),
    nn.Hardsigmoid: ("HardSigmoid", {"alpha": 1 / 6, "beta": 0.5}),
    nn.AdaptiveAvgPool2d: ("GlobalAveragePool", {}),  # of squeeze and excitation, to 1 x 1
}


def to_layers(model: Model) -> bytes:
    """An ONNX file from ``image``, as `InputSpec.check_images` gives it, to the score maps.

    The image is ``N x H x W x (3 + B)``, RGB and the bands; the maps are the coarsest first.

    Raises:
        ModuleNotFoundError: onnx is not installed.
        ValueError: a layer that no trunk of `fcn.trunks` has.
    """
    return _file(_Graph(model), ())


def to_layers_and_weights(model: Model) -> tuple[bytes, dict[str, NDArray[Any]]]:
    """`to_layers` without the large weights, which are inputs of the graph, and these by name.

    For a runtime that takes them as they lie in memory: half a gigabyte need not be written.
    """
    graph = _Graph(model)
    large = {
        name: np.ascontiguousarray(value)
        for name, value in graph.constants
        if value.dtype == np.float32 and value.ndim == 4 and value.nbytes >= LARGE_BYTES
    }
    return _file(graph, large), large


def _file(graph: "_Graph", apart: Collection[str]) -> bytes:
    from onnx import TensorProto, helper  # noqa: PLC0415 - an extra, see `fcn.backends`

    spec = graph.input
    shape: list[str | int | None] = ["N", graph.num_classes, None, None]
    pixels = TensorProto.UINT8 if spec.dtype == np.uint8 else TensorProto.FLOAT
    seen: list[str | int | None] = ["N", "H", "W", spec.num_channels]
    weights = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, value.shape)
        for name, value in graph.constants
        if name in apart
    ]
    nodes = helper.make_graph(
        graph.nodes,
        "layers",
        [helper.make_tensor_value_info("image", pixels, seen), *weights],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in graph.outputs],
    )
    whole = helper.make_model(nodes, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    whole.ClearField("graph")
    # onnx would copy half a gigabyte of weights five times. The fields of a message lie behind
    # one another, so that those of the weights can be written without it, and once.
    constants: list[bytes | memoryview] = []
    for name, value in graph.constants:
        if name in apart:
            continue
        kind = helper.np_dtype_to_tensor_dtype(value.dtype)
        tensor = TensorProto(name=name, data_type=kind, dims=value.shape).SerializeToString()
        numbers = np.ascontiguousarray(value).reshape(-1).view(np.uint8).data
        constants += field(_INITIALIZER, [tensor, *field(_RAW_DATA, [numbers])])
    fields = [whole.SerializeToString(), *field(_GRAPH, [nodes.SerializeToString(), *constants])]
    return b"".join(fields)


class _Maps(nn.Module):
    """The part of a network that is written."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.net = model.net

    def forward(self, image: Tensor) -> list[Tensor]:
        return self.net.score_maps(image)


class _Graph:
    """Nodes and constants in the order in which the network computes, and names of its outputs."""

    def __init__(self, model: Model) -> None:
        self.input, self.num_classes = model.input, model.net.num_classes
        traced = fx.symbolic_trace(_Maps(model).eval())
        self.layers = dict(traced.named_modules())
        self.ranges = model.ranges or {}
        self.nodes: list[Any] = []
        self.constants: list[tuple[str, NDArray[Any]]] = []
        self.outputs: list[str] = []
        self.maps: dict[fx.Node, str] = {}
        self.rounded: dict[fx.Node, str] = {}
        self.steps = self._steps(traced)
        for node in traced.graph.nodes:
            if node.op == "output":
                self.outputs = [self.maps[score] for score in node.args[0]]
                self._prune()
                return
            if node.op == "placeholder":
                self.maps[node] = self._normalised(model.input)
            else:
                self.maps[node] = self._written(node, self.maps)
            if node in self.steps:
                self.rounded[node] = self._rounded(node)

    def _prune(self) -> None:
        """Drop what only rounded maps are made from: ONNX Runtime would compute it."""
        needed = set(self.outputs)
        kept = []
        for node in reversed(self.nodes):
            if node.output[0] in needed:
                kept.append(node)
                needed |= set(node.input)
        self.nodes = kept[::-1]
        self.constants = [constant for constant in self.constants if constant[0] in needed]

    def _steps(self, traced: fx.GraphModule) -> dict[fx.Node, tuple[np.float32, np.uint8]]:
        """Scale and zero point of the maps that integer convolutions see or are fed from."""
        groups: dict[fx.Node, set[fx.Node]] = {}
        limits: dict[fx.Node, Range] = {}
        for node in traced.graph.nodes:
            limit = self.ranges.get(self._name(node))
            if limit is None:
                continue
            group = set(self._through(node.all_input_nodes[0]))
            group = group.union(*(groups[member] for member in group if member in groups))
            known = [limit, *(limits[member] for member in group if member in limits)]
            low, high = min(low for low, _ in known), max(high for _, high in known)
            groups |= dict.fromkeys(group, group)
            limits |= dict.fromkeys(group, (low, high))
        return {node: _step(limit) for node, limit in limits.items()}

    def _through(self, node: fx.Node) -> Iterator[fx.Node]:
        """A map, and through poolings and concatenations those that it is made of."""
        yield node
        if self._only_moves(node):
            for part in node.all_input_nodes:
                yield from self._through(part)

    def _only_moves(self, node: fx.Node) -> bool:
        """A layer whose outputs are all among its inputs."""
        layer = self.layers.get(self._path(node))
        return node.target is torch.cat or isinstance(layer, nn.MaxPool2d | nn.Dropout)

    def _path(self, node: fx.Node) -> str:
        return str(node.target) if node.op == "call_module" else ""

    def _name(self, node: fx.Node) -> str:
        """The layer's name in the network."""
        return self._path(node).removeprefix("net.")

    def _rounded(self, node: fx.Node) -> str:
        """The map as integers of one scale, and back: runtimes leave out the way back."""
        floats = self._written(node, self.rounded) if self._only_moves(node) else self.maps[node]
        integers = self._add("QuantizeLinear", floats, *self.steps[node])
        return self._add("DequantizeLinear", integers, *self.steps[node])

    def _normalised(self, spec: InputSpec) -> str:
        """`InputSpec.normalise`."""
        name = "image"
        if spec.channel_order == "BGR":
            name = self._add("Gather", name, np.array(spec.channels), axis=3)
        name = self._add("Transpose", name, perm=[0, 3, 1, 2])
        name = self._add("Cast", name, to=1)  # float32
        given = (spec.means, spec.stds)
        mean, std = (np.reshape(v, (1, -1, 1, 1)).astype(np.float32) for v in given)
        return self._add("Div", self._add("Sub", name, mean), std)

    def _written(self, node: fx.Node, maps: Mapping[fx.Node, str]) -> str:
        """The name of a node's output, whose inputs are ``maps``."""
        if node.op == "call_function" and node.target in _FUNCTIONS:
            return self._function(node, maps)
        layer = self.layers.get(self._path(node))
        if isinstance(layer, nn.Conv2d):
            return self._convolution(node, layer)
        source = maps[node.all_input_nodes[0]]
        if isinstance(layer, nn.Dropout | nn.Identity | nn.BatchNorm2d):
            return source
        if isinstance(layer, nn.MaxPool2d):
            return self._add("MaxPool", source, **_window(layer))
        if isinstance(layer, nn.LocalResponseNorm):
            numbers: Mapping[str, float] = {
                "alpha": layer.alpha,
                "beta": layer.beta,
                "bias": layer.k,
            }
            return self._add("LRN", source, size=layer.size, **numbers)
        if type(layer) in _ACTIVATIONS:
            name, numbers = _ACTIVATIONS[type(layer)]
            return self._add(name, source, **numbers)
        raise ValueError(f"no ONNX is known here for {node.target}: {layer}")

    def _function(self, node: fx.Node, maps: Mapping[fx.Node, str]) -> str:
        arguments: Any = node.args
        if node.target is torch.narrow:
            source, axis, start, length = arguments
            places = [np.array([place]) for place in (start, start + length, axis)]
            return self._add("Slice", maps[source], *places)
        attributes = {"axis": 1} if node.target is torch.cat else {}
        parts = arguments[0] if node.target is torch.cat else arguments
        inputs = [maps[p] if isinstance(p, fx.Node) else np.float32(p) for p in parts]
        return self._add(_FUNCTIONS[node.target], *inputs, **attributes)

    def _convolution(self, node: fx.Node, layer: nn.Conv2d) -> str:
        weight, bias = self._weights(node, layer)
        (source,) = node.all_input_nodes
        attributes = {"group": layer.groups, **_window(layer)}
        if self._name(node) not in self.ranges:
            return self._add("Conv", self.maps[source], weight, bias, **attributes)
        largest = abs(weight).reshape(len(weight), -1).max(axis=1)
        scales = np.where(largest > 0, largest / MAX_WEIGHT, 1).astype(np.float32)
        integers = np.round(weight / scales[:, None, None, None]).astype(np.int8)
        weights = self._add("DequantizeLinear", integers, scales, axis=0)
        # ONNX Runtime adds biases to the sums of integers, else it computes in floats.
        scales = scales * self.steps[source][0]
        sums = np.round(bias / scales).clip(-(2**31), 2**31 - 1).astype(np.int32)
        biases = self._add("DequantizeLinear", sums, scales, axis=0)
        return self._add("Conv", self.rounded[source], weights, biases, **attributes)

    def _weights(self, node: fx.Node, layer: nn.Conv2d) -> tuple[NDArray[Any], NDArray[Any]]:
        """Weights and biases, with the normalisation that follows in them."""
        weight, bias = layer.weight, layer.bias
        for user in node.users:
            norm = self.layers.get(self._path(user))
            if isinstance(norm, nn.BatchNorm2d):
                assert norm.running_mean is not None
                assert norm.running_var is not None
                weight, bias = fuse_conv_bn_weights(
                    weight,
                    bias,
                    norm.running_mean,
                    norm.running_var,
                    norm.eps,
                    norm.weight,
                    norm.bias,
                )
        if bias is None:
            bias = nn.Parameter(weight.new_zeros(len(weight)))
        return weight.detach().cpu().numpy(), bias.detach().cpu().numpy()

    def _add(self, kind: str, *inputs: Any, **attributes: Any) -> str:
        """Append a node; inputs that are no names are constants."""
        from onnx import helper  # noqa: PLC0415 - see `to_layers`

        names = []
        for value in inputs:
            name = value if isinstance(value, str) else f"c{len(self.constants)}"
            if name is not value:
                self.constants.append((name, np.asarray(value)))
            names.append(name)
        output = f"{kind}{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], **attributes))
        return output


def _step(limit: Range) -> tuple[np.float32, np.uint8]:
    """Scale and zero point with which 0..255 cover a range."""
    low, high = limit
    scale = np.float32((high - low) / 255 or 1)
    return scale, np.uint8(np.clip(np.round(-low / scale), 0, 255))


def _window(layer: nn.Module) -> dict[str, list[int]]:
    """Kernel, stride, padding and dilation of a convolution or pooling, in ONNX's words."""
    sides = window(layer)
    assert sides is not None
    before = after = sides["padding"]
    if getattr(layer, "ceil_mode", False):
        after += sides["stride"] - 1  # the same cells; OpenVINO's ceil mode refuses 1 x 1
    return {
        "kernel_shape": [sides["kernel"]] * 2,
        "strides": [sides["stride"]] * 2,
        "pads": [before, before, after, after],
        "dilations": [sides["dilation"]] * 2,
    }
