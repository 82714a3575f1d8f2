"""The classifiers that an FCN can stand on, and how each is cast fully convolutional.

Adding a trunk is adding a row to `TRUNKS`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import fx, nn

from fcn.caffenet import CaffeNet
from fcn.geometry import window
from fcn.input import TORCHVISION, InputSpec
from fcn.light import without_compiler

with without_compiler():
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

Geometry = Literal["same", "reference"]

REFERENCE_PADDING = 100
"""Padding of the first convolution in the authors' released networks."""


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """One row of the table.

    Attributes:
        nodes: Stride to the name of the classifier's node that ends that stride, finest
            first. The last one feeds the head.
        head: Makes the layers between the last node and the scores.
        weights: Name of torchvision's weights; None where it has none.
        input: The input that torchvision's weights want.
        classifier: Makes the classifier; None takes torchvision's of the row's name.
    """

    nodes: Mapping[int, str]
    head: Callable[[nn.Module], nn.Sequential]
    weights: str | None
    input: InputSpec = TORCHVISION
    classifier: Callable[[], nn.Module] | None = None


def convolutionalise(linear: nn.Linear, grid: int) -> nn.Conv2d:
    """A convolution ``O x I x grid x grid`` that sees what ``linear`` saw of a flattened map.

    The weights are the linear layer's, reshaped row-major: on a ``grid x grid`` map the
    convolution without padding gives the linear layer's outputs.

    Raises:
        ValueError: The inputs of ``linear`` are no multiple of ``grid * grid``.
    """
    channels, rest = divmod(linear.in_features, grid * grid)
    if rest:
        raise ValueError(f"{linear.in_features} inputs are no map of {grid} x {grid} cells")
    bias = linear.bias is not None
    with torch.device("meta"):
        conv = nn.Conv2d(channels, linear.out_features, grid, bias=bias)
    conv.weight = nn.Parameter(linear.weight.detach().reshape(conv.weight.shape))
    if bias:
        conv.bias = nn.Parameter(linear.bias.detach())
    return conv


def linear_head(net: nn.Module) -> nn.Sequential:
    """fc6 and fc7 of a VGG or an AlexNet as convolutions, with their ReLU and dropout.

    fc6 sees the grid that the classifier pools to, 7 x 7 or 6 x 6; fc7 is 1 x 1.
    """
    pooled: Any = net.get_submodule("avgpool").output_size
    grid = int(pooled[0])
    head, number = nn.Sequential(), 5
    *layers, _ = net.get_submodule("classifier").children()
    for layer in layers:
        if isinstance(layer, nn.Linear):
            number += 1
            head.add_module(f"fc{number}", convolutionalise(layer, grid))
            grid = 1
        else:
            name = "drop" if isinstance(layer, nn.Dropout) else "relu"
            head.add_module(f"{name}{number}", layer)
    return head


def dropout_head(net: nn.Module) -> nn.Sequential:
    """The dropout before the classifier's last layer (SqueezeNet, GoogLeNet).

    It is the last of the network: GoogLeNet's auxiliary classifiers have others before it.
    """
    *_, last = (layer for layer in net.modules() if isinstance(layer, nn.Dropout))
    return nn.Sequential(last)


def plain_head(_: nn.Module) -> nn.Sequential:
    """Nothing: a pooled classifier (ResNet, RegNet, MobileNet) scores its last map directly."""
    return nn.Sequential()


def _vgg(pool3: int, pool4: int, pool5: int, weights: str) -> Trunk:
    nodes = {8: f"features.{pool3}", 16: f"features.{pool4}", 32: f"features.{pool5}"}
    return Trunk(nodes=nodes, head=linear_head, weights=weights)


def _regnet() -> nn.Module:
    """RegNetX-400MF, whose block widths torchvision can only compute on a real device."""
    device = torch.get_default_device()
    with torch.device("cpu"):
        net: nn.Module = get_model("regnet_x_400mf", weights=None)
    return net.to(device)


def _resnet(weights: str) -> Trunk:
    nodes = {4: "layer1", 8: "layer2", 16: "layer3", 32: "layer4"}
    return Trunk(nodes=nodes, head=plain_head, weights=weights)


TRUNKS: Mapping[str, Trunk] = {
    "alexnet": Trunk(
        nodes={8: "features.2", 16: "features.5", 32: "features.12"},
        head=linear_head,
        weights="AlexNet_Weights.IMAGENET1K_V1",
    ),
    "caffenet": Trunk(
        nodes={8: "features.pool1", 16: "features.pool2", 32: "features.pool5"},
        head=linear_head,
        weights=None,
        classifier=CaffeNet,
    ),
    "vgg11": _vgg(10, 15, 20, "VGG11_Weights.IMAGENET1K_V1"),
    "vgg11_bn": _vgg(14, 21, 28, "VGG11_BN_Weights.IMAGENET1K_V1"),
    "vgg13": _vgg(14, 19, 24, "VGG13_Weights.IMAGENET1K_V1"),
    "vgg13_bn": _vgg(20, 27, 34, "VGG13_BN_Weights.IMAGENET1K_V1"),
    "vgg16": _vgg(16, 23, 30, "VGG16_Weights.IMAGENET1K_V1"),
    "vgg16_bn": _vgg(23, 33, 43, "VGG16_BN_Weights.IMAGENET1K_V1"),
    "vgg19": _vgg(18, 27, 36, "VGG19_Weights.IMAGENET1K_V1"),
    "vgg19_bn": _vgg(26, 39, 52, "VGG19_BN_Weights.IMAGENET1K_V1"),
    "resnet18": _resnet("ResNet18_Weights.IMAGENET1K_V1"),
    "resnet34": _resnet("ResNet34_Weights.IMAGENET1K_V1"),
    "resnet50": _resnet("ResNet50_Weights.IMAGENET1K_V2"),
    "resnet101": _resnet("ResNet101_Weights.IMAGENET1K_V2"),
    "resnet152": _resnet("ResNet152_Weights.IMAGENET1K_V2"),
    "googlenet": Trunk(
        nodes={8: "inception3b", 16: "inception4e", 32: "inception5b"},
        head=dropout_head,
        weights="GoogLeNet_Weights.IMAGENET1K_V1",
        # Torchvision turns its usual input into this one inside the network (transform_input).
        input=InputSpec(channel_order="RGB", mean=(127.5,) * 3, std=(127.5,) * 3),
        # Its own initialisation takes a minute.
        classifier=partial(get_model, "googlenet", weights=None, init_weights=False),
    ),
    "squeezenet1_1": Trunk(
        nodes={4: "features.4", 8: "features.7", 16: "features.12"},
        head=dropout_head,
        weights="SqueezeNet1_1_Weights.IMAGENET1K_V1",
    ),
    "mobilenet_v3_large": Trunk(
        nodes={8: "features.6", 16: "features.12", 32: "features.16"},
        head=plain_head,
        weights="MobileNet_V3_Large_Weights.IMAGENET1K_V2",
    ),
    "mobilenet_v3_small": Trunk(
        nodes={8: "features.3", 16: "features.8", 32: "features.12"},
        head=plain_head,
        weights="MobileNet_V3_Small_Weights.IMAGENET1K_V1",
    ),
    "regnet_x_400mf": Trunk(
        nodes={
            4: "trunk_output.block1",
            8: "trunk_output.block2",
            16: "trunk_output.block3",
            32: "trunk_output.block4",
        },
        head=plain_head,
        weights="RegNet_X_400MF_Weights.IMAGENET1K_V2",
        classifier=_regnet,
    ),
}

Backbone = Literal[
    "alexnet",
    "caffenet",
    "vgg11",
    "vgg11_bn",
    "vgg13",
    "vgg13_bn",
    "vgg16",
    "vgg16_bn",
    "vgg19",
    "vgg19_bn",
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "googlenet",
    "squeezenet1_1",
    "mobilenet_v3_large",
    "mobilenet_v3_small",
    "regnet_x_400mf",
]
"""The names of `TRUNKS`, as a type for settings and forms."""


def build(
    backbone: str, stride: int, geometry: Geometry, in_channels: int = 3
) -> tuple[fx.GraphModule, nn.Sequential]:
    """The trunk, traced to return its maps from ``stride`` down, and its head.

    Args:
        backbone: a name of `TRUNKS`.
        stride: The finest stride whose map is returned.
        geometry: "same" centres every window, so that a map of any image has
            ``ceil(size / stride)`` cells; "reference" keeps the classifier's paddings but for
            100 around the image, as the authors' networks do.
        in_channels: Channels of the image. For other than 3 the first convolution is new.

    Raises:
        ValueError: An unknown backbone, a stride it does not have, or the reference geometry
            of a trunk that the authors did not release.
    """
    if backbone not in TRUNKS:
        raise ValueError(f"unknown backbone {backbone!r}; known are {', '.join(TRUNKS)}")
    row = TRUNKS[backbone]
    if stride not in row.nodes:
        raise ValueError(f"{backbone} has strides {list(row.nodes)}, not {stride}")
    net = classifier(backbone)
    if in_channels != 3:
        _see_channels(net, in_channels)
    head = row.head(net)
    if geometry == "same":
        centre_windows(net)
        centre_windows(head)
    elif row.head is linear_head:
        reference_windows(net)
    else:
        raise ValueError(
            f"the reference geometry is known for VGG, AlexNet and CaffeNet, not for {backbone}"
        )
    return extract(net, row, stride), head


def classifier(backbone: str) -> nn.Module:
    """The classifier of a row of `TRUNKS`, with random weights."""
    make = TRUNKS[backbone].classifier or partial(get_model, backbone, weights=None)
    return make()


def extract(net: nn.Module, row: Trunk, stride: int) -> fx.GraphModule:
    """The trunk of a classifier, traced to return its maps from ``stride`` down, by stride."""
    nodes = {node: str(stride_) for stride_, node in row.nodes.items() if stride_ >= stride}
    trunk: fx.GraphModule = create_feature_extractor(net, nodes, suppress_diff_warning=True)
    return trunk


def first_convolution(net: nn.Module) -> tuple[str, nn.Conv2d]:
    """Name and layer of the convolution that sees the image."""
    return next((n, m) for n, m in net.named_modules() if isinstance(m, nn.Conv2d))


def _see_channels(net: nn.Module, in_channels: int) -> None:
    """Replace the first convolution by one that sees so many channels."""
    name, old = first_convolution(net)
    new = nn.Conv2d(
        in_channels,
        old.out_channels,
        old.kernel_size,  # type: ignore[arg-type]
        old.stride,  # type: ignore[arg-type]
        old.padding,  # type: ignore[arg-type]
        bias=old.bias is not None,
    )
    parent, _, child = name.rpartition(".")
    setattr(net.get_submodule(parent), child, new)


def centre_windows(net: nn.Module) -> None:
    """Pad every convolution and pooling so that any map of n cells gives ``ceil(n / stride)``.

    Odd windows are padded by half their reach, even poolings (VGG's) not at all but in ceil
    mode. An even convolution (AlexNet's fc6) is padded by half its kernel and gives n + 1
    cells, the first of them half a cell before the map's. ResNet and VGG are built so already;
    AlexNet, SqueezeNet and GoogLeNet lose their lopsided borders, and images of any size, even
    1 x 1, go through.
    """
    for layer in net.modules():
        geometry = window(layer)
        if geometry is None:
            continue
        kernel, reach = geometry["kernel"], (geometry["kernel"] - 1) * geometry["dilation"]
        if isinstance(layer, nn.Conv2d):
            odd = kernel % 2 == 1
            assert odd or geometry["stride"] == 1, f"an even, strided convolution: {layer}"
            layer.padding = (reach // 2, reach // 2) if odd else (kernel // 2, kernel // 2)
        elif isinstance(layer, nn.MaxPool2d | nn.AvgPool2d):
            layer.padding = reach // 2 if kernel % 2 else 0
            layer.ceil_mode = kernel % 2 == 0


def reference_windows(net: nn.Module) -> None:
    """The windows of the authors' nets: 100 around the image, ceil-mode pooling."""
    _, first = first_convolution(net)
    first.padding = (REFERENCE_PADDING, REFERENCE_PADDING)
    for layer in net.modules():
        if isinstance(layer, nn.MaxPool2d):
            layer.ceil_mode = True
