"""The authors' released networks, known by the names and shapes of their layers.

The releases in Caffe and their well-known port to PyTorch (wkentaro's ``torchfcn``) name their
layers alike: ``conv1_1``, ``fc6``, ``score_fr``, ``score_pool4``, ``upscore2``, … What a file
holds follows from these names and from the shapes: trunk, stride, classes, channels.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from fcn.caffemodel import read_caffemodel
from fcn.checkpoint import shape_text
from fcn.errors import CheckpointError
from fcn.loading import file_bytes
from fcn.model import AT_ONCE, FCN
from fcn.state_dicts import read_state_dict
from fcn.upsample import Upscore, bilinear_kernel

_LAST = "score_fr"
_SKIPS = {16: "score_pool4", 8: "score_pool3"}
_SCALES = {"scale_pool4": AT_ONCE, "scale_pool3": AT_ONCE**2}
_UPSCORES = {
    32: {"upscore": "upscore"},
    16: {"fuse.16.upscore2": "upscore2", "upscore": "upscore16"},
    8: {
        "fuse.16.upscore2": "upscore2",
        "fuse.8.upscore2": "upscore_pool4",
        "upscore": "upscore8",
    },
}
"""Our upsampling layers to the released nets', by stride."""

_FIRST = {"conv1_1": "vgg16", "conv1_1_bgrd": "vgg16", "conv1": "caffenet"}
"""The layer that sees the image, to the trunk it belongs to."""

_MODALITIES = ("color", "hha")
"""What the layers of the net with two trunks end in, ``conv1_1color`` and ``conv1_1hha``, in the
order of ``modality_fcn`` in ``nyud-fcn32s-color-hha/net.py`` of github.com/shelhamer/
fcn.berkeleyvision.org. There ``score_fused`` is the sum of ``score_frcolor`` and ``score_frhha``
with the coefficients 0.5 and 0.5; behind it stand one ``upscore`` and one crop."""


def load_caffemodel(file: bytes | str | Path | BinaryIO) -> FCN:
    """A network of the authors' release, from its ``.caffemodel``.

    Known are the nets of PASCAL VOC (32s, 16s, 8s, 8s at once, AlexNet), PASCAL-Context, SIFT
    Flow (two heads, ``sem`` and ``geo``: a `Model` of it names the classes of ``sem`` and, as
    ``further_classes``, those of ``geo``), and NYUDv2 (colour, HHA, colour and depth, and the
    two trunks of colour and HHA, as two ``modalities``). The network has their geometry
    ("reference") and wants their input: float BGR 0..255 minus the mean of their data, which is
    (104.00699, 116.66877, 122.67892) for VOC; a fourth channel is the logarithm of the depth
    minus 7.844. `fcn.input.NYUD_COLOR_HHA` is that of the two trunks.

    Raises:
        CheckpointError: The file is damaged, or holds another network; the message names the
            layer, what was found and what was expected.
        OSError: The file cannot be opened.
    """
    return released_net(read_caffemodel(file_bytes(file)))


def load_torchfcn(file: bytes | str | Path | BinaryIO, *, at_once: bool = False) -> FCN:
    """A VGG16 network of the PyTorch port ``torchfcn`` (FCN32s, 16s, 8s), from its ``.pth``.

    No code from the file is run. The input is that of `load_caffemodel`.

    Args:
        file: The state dict, as ``torch.save`` or safetensors write it, or a checkpoint of
            the port that holds it.
        at_once: It is an FCN8sAtOnce, whose weights have the names and shapes of FCN8s.

    Raises:
        CheckpointError: The file is damaged, or holds another network.
        OSError: The file cannot be opened.
    """
    return released_net(read_state_dict(file_bytes(file)), at_once=at_once)


def is_released(tensors: Mapping[str, Tensor]) -> bool:
    """The weights bear the names of a released network: those of the trunk and of scores."""
    return any(f"{layer}.weight" in tensors for layer in _FIRST) and f"{_LAST}.weight" in tensors


def released_net(tensors: Mapping[str, Tensor], *, at_once: bool = False) -> FCN:
    """The network that weights under the released names are of.

    Raises:
        CheckpointError: The weights are of no such network.
    """
    wrong = [name for name, tensor in tensors.items() if not tensor.is_floating_point()]
    if wrong:
        raise CheckpointError(f"{wrong[0]} holds {tensors[wrong[0]].dtype}, expected floats")
    if modalities := _modalities(tensors):
        return _late_fusion(modalities)
    first, backbone = _trunk(tensors)
    heads = _heads(tensors)
    if heads:
        tensors = _joined(tensors, heads)
    if f"{_LAST}.weight" not in tensors:
        raise CheckpointError(_no_score(tensors))
    stride = min([32, *(s for s, name in _SKIPS.items() if f"{name}.weight" in tensors)])
    scales = [name for name in _SCALES if f"{name}.weight" in tensors]
    for name in scales:
        _check_scale(name, tensors[f"{name}.weight"])
    num_classes, in_channels = (_length(tensors, n, a) for n, a in ((_LAST, 0), (first, 1)))
    learnable = _has_other_kernels(tensors, stride, backbone)
    with torch.device("meta"):
        net = FCN(
            backbone,
            num_classes,
            stride,
            "reference",
            learnable_upsampling=learnable,
            in_channels=in_channels,
            at_once=at_once or bool(scales),
            heads=heads or None,
        )
    names = released_names(net, first)
    unknown = sorted(tensors.keys() - set(names.values()) - _beside(stride, scales))
    if unknown:
        raise CheckpointError(
            f"unknown layer: found {unknown[0]}, {shape_text(tensors[unknown[0]].shape)}; expected "
            f"the layers of an FCN-{stride}s on {backbone}"
        )
    own = net.state_dict()
    state = {
        name: fitted(released, tensors.get(released), own[name].shape)
        for name, released in names.items()
    }
    net.load_state_dict(state, assign=True)
    return net.requires_grad_().eval()


def _modalities(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The weights of each trunk of several under the names of a net with one, with those of all."""
    if not any(f"conv1_1{name}.weight" in tensors for name in _MODALITIES):
        return {}
    split: dict[str, dict[str, Tensor]] = {name: {} for name in _MODALITIES}
    for key, tensor in tensors.items():
        layer, _, kind = key.rpartition(".")
        own = [name for name in _MODALITIES if layer.endswith(name)]
        for name in own or _MODALITIES:
            split[name][f"{layer.removesuffix(name)}.{kind}"] = tensor
    return split


def _late_fusion(modalities: Mapping[str, Mapping[str, Tensor]]) -> FCN:
    """The network of several trunks, from the weights of each."""
    nets: dict[str, FCN] = {}
    for name, tensors in modalities.items():
        try:
            nets[name] = released_net(tensors)
        except CheckpointError as error:
            raise CheckpointError(f"of the layers whose names end in {name!r}: {error}") from error
    first, *others = nets.values()
    for name, net in nets.items():
        if (net.stride, net.num_classes) != (first.stride, first.num_classes):
            raise CheckpointError(
                f"the scores of {name!r} are {net.num_classes} at stride {net.stride}, those of "
                f"{_MODALITIES[0]!r} {first.num_classes} at stride {first.stride}; expected the "
                "same, to be averaged"
            )
    with torch.device("meta"):
        net = FCN(
            first.backbone,
            first.num_classes,
            first.stride,
            "reference",
            learnable_upsampling=first.learnable_upsampling,
            in_channels=sum(net.in_channels for net in nets.values()),
            at_once=first.at_once,
            modalities=[net.in_channels for net in nets.values()],
        )
    state = dict(first.state_dict())
    for index, other in enumerate(others):  # upsampling stands once, behind the mean
        state |= {f"beside.{index}.{name}": tensor for name, tensor in other.state_dict().items()}
    own = net.state_dict().keys()
    net.load_state_dict({name: state[name] for name in own}, assign=True)
    return net.requires_grad_().eval()


def released_names(net: FCN, first: str | None = None) -> dict[str, str]:
    """The network's weights, to the released names of the same.

    Args:
        net: a network on VGG16 or CaffeNet.
        first: The name of the first layer, where it is a special one.
    """
    layers = dict(zip(_convolutions(net.trunk), _conv_names(net), strict=True))
    if first:
        layers[next(iter(layers))] = first
    names = {f"trunk.{own}": released for own, released in layers.items()}
    names |= {"head.fc6": "fc6", "head.fc7": "fc7", _LAST: _LAST}
    names |= {f"fuse.{s}.score_pool": name for s, name in _SKIPS.items() if s >= net.stride}
    names |= _UPSCORES[net.stride]
    both = {f"{o}.{kind}": f"{r}.{kind}" for o, r in names.items() for kind in ("weight", "bias")}
    return {name: both[name] for name in net.state_dict()}


def _convolutions(trunk: nn.Module) -> list[str]:
    return [name for name, layer in trunk.named_modules() if isinstance(layer, nn.Conv2d)]


def _conv_names(net: FCN) -> Iterable[str]:
    """``conv1_1``, … of VGG16, numbered by the poolings; CaffeNet's layers have their own."""
    if net.backbone == "caffenet":
        yield from (name.removeprefix("features.") for name in _convolutions(net.trunk))
        return
    block, number = 1, 0
    for layer in net.trunk.modules():
        if isinstance(layer, nn.MaxPool2d):
            block, number = block + 1, 0
        elif isinstance(layer, nn.Conv2d):
            number += 1
            yield f"conv{block}_{number}"


def fitted(name: str, found: Tensor | None, expected: torch.Size) -> Tensor:
    """A released weight in the shape that ours has.

    Files of 2014 give every shape four axes, a Linear layer's weights have two, and the
    upsampling has a kernel for every pair of classes, of which only the diagonal is not zero.

    Raises:
        CheckpointError: The weight is absent or of another shape.
    """
    if found is None:
        raise CheckpointError(f"{name} is absent; expected {shape_text(expected)}")
    axes = [size for size in found.shape if size != 1]
    linear = [expected[0], expected[1:].numel()]
    if "upscore" in name:
        found = _kernels(name, found)
        axes = [size for size in found.shape if size != 1]
    if axes == [size for size in expected if size != 1] or axes == [s for s in linear if s != 1]:
        return found.reshape(expected).contiguous()
    raise CheckpointError(f"{name} is {shape_text(found.shape)}, expected {shape_text(expected)}")


def _trunk(tensors: Mapping[str, Tensor]) -> tuple[str, str]:
    for first, backbone in _FIRST.items():
        if f"{first}.weight" in tensors:
            return first, backbone
    found = ", ".join(sorted({name.rpartition(".")[0] for name in tensors})[:4])
    raise CheckpointError(
        f"no released network: expected a first layer {' or '.join(_FIRST)}, found {found}, …"
    )


def _heads(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Heads over one trunk and their classes, from names such as ``score_fr_sem.weight``."""
    layers = [n.removesuffix(".weight") for n in tensors if n.endswith(".weight")]
    scores = [layer for layer in layers if layer.startswith(f"{_LAST}_")]
    return {layer.removeprefix(f"{_LAST}_"): _length(tensors, layer, 0) for layer in scores}


def _joined(tensors: Mapping[str, Tensor], heads: Mapping[str, int]) -> dict[str, Tensor]:
    """The weights with the layers of all heads joined, one head's classes after another's."""
    joined = dict(tensors)
    first = next(iter(heads))
    for name in tensors:
        layer, _, kind = name.rpartition(".")
        if not layer.endswith(f"_{first}"):
            continue
        base = layer.removesuffix(f"_{first}")
        parts = []
        for head in heads:
            part = joined.pop(f"{base}_{head}.{kind}", None)
            if part is None:
                raise CheckpointError(f"layer {base}_{head} is absent, but {layer} is there")
            parts.append(_kernels(name, part) if "upscore" in base else part)
        try:
            joined[f"{base}.{kind}"] = torch.cat(parts)
        except (RuntimeError, IndexError) as error:
            raise CheckpointError(f"the heads of {base} do not fit together: {error}") from error
    return joined


def _kernels(name: str, weight: Tensor) -> Tensor:
    """Upsampling kernels ``C x 1 x k x k``, of weights that may hold one for every pair."""
    if weight.ndim == 4 and weight.shape[1] == 1:
        return weight
    if weight.ndim != 4 or weight.shape[0] != weight.shape[1]:
        raise CheckpointError(
            f"{name} is {shape_text(weight.shape)}, expected a kernel for every pair of classes"
        )
    kernels = weight.diagonal().permute(2, 0, 1).unsqueeze(1)
    if weight.count_nonzero() > kernels.count_nonzero():
        raise CheckpointError(f"{name} mixes classes: kernels beside the diagonal are not zero")
    return kernels.contiguous()


def _no_score(tensors: Mapping[str, Tensor]) -> str:
    if "fc8.weight" in tensors:
        return f"an ILSVRC classifier (layer 'fc8'), no FCN (layer {_LAST!r}); use it as init"
    return f"layer {_LAST!r} is absent; expected the scores of an FCN"


def _length(tensors: Mapping[str, Tensor], layer: str, axis: int) -> int:
    weight = tensors[f"{layer}.weight"]
    if weight.ndim != 4 or not weight.numel():
        raise CheckpointError(f"{layer}.weight is {shape_text(weight.shape)}, expected four axes")
    return int(weight.shape[axis])


def _check_scale(name: str, scale: Tensor) -> None:
    expected = _SCALES[name]
    if not torch.allclose(scale, torch.tensor(expected), rtol=1e-5, atol=0):
        raise CheckpointError(
            f"layer {name!r} scales by {float(scale.min()):g} to {float(scale.max()):g}, "
            f"expected {expected:g}"
        )


def _has_other_kernels(tensors: Mapping[str, Tensor], stride: int, backbone: str) -> bool:
    """Whether upsampling was trained: a kernel is not bilinear."""
    with torch.device("meta"):
        net = FCN(backbone, 1, stride, "reference")
    for own, released in _UPSCORES[stride].items():
        name = f"{released}.weight"
        if name not in tensors:
            continue
        layer = net.get_submodule(own)
        assert isinstance(layer, Upscore)
        size = layer.kernel_size
        kernels = _kernels(name, tensors[name])
        if kernels.shape[2:] != (size, size):
            raise CheckpointError(
                f"{name} is {shape_text(tensors[name].shape)}, expected kernels {size} x {size}"
            )
        bilinear = bilinear_kernel(layer.factor, layer.centre, size)
        if not torch.allclose(kernels, bilinear, rtol=1e-4, atol=1e-5):
            return True
    return False


def _beside(stride: int, scales: list[str]) -> set[str]:
    """Names that are read but no weight of ours: scales, and kernels that are bilinear."""
    upscores = {f"{name}.weight" for name in _UPSCORES[stride].values()}
    return upscores | {f"{name}.weight" for name in scales} | {f"{name}.bias" for name in scales}
