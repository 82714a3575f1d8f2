"""Where a network's first weights come from."""

import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.hub import get_dir
from torchvision.models import get_weight

from fcn.caffemodel import looks_like_caffemodel, read_caffemodel
from fcn.checkpoint import CARD_KEY, is_safetensors, read_safetensors, shape_text
from fcn.classes import Classes
from fcn.errors import CheckpointError
from fcn.input import CAFFE, NYUD_COLOR_HHA, RELEASE, TORCHVISION, InputSpec
from fcn.loading import load
from fcn.model import FCN
from fcn.released import fitted, is_released, released_names, released_net
from fcn.squeezenet import holds_arrays, read_squeezenet
from fcn.state_dicts import ERRORS, PICKLE, ZIP, checked, read_state_dict
from fcn.trunks import TRUNKS, classifier, first_convolution

InitClasses = Literal["same", "by_name"]

_BELOW_SCORES = re.compile(r"(beside\.\d+\.)?(trunk|head)\.")
"""Names of weights that do not depend on the classes."""

_logger = logging.getLogger(__name__)


class Transplant(BaseModel):
    """What a transplant did.

    Attributes:
        input: The input that the transplanted weights want.
        copied: Names of the weights taken from the source.
        coerced: Those of them that were given another shape: Linear layers made convolutions,
            a first convolution that sees further channels, scores chosen by class.
        left: Names of the weights that the source does not have; they keep their start.
        from_stride: Stride of the FCN the weights came from; None for a classifier.
        sha256: Of the file that the weights came from; None where ``read`` gave none.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: InputSpec
    copied: tuple[str, ...] = ()
    coerced: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    from_stride: int | None = None
    sha256: str | None = None


def transplant(
    net: FCN,
    init: str,
    classes: Classes,
    read: Callable[[str], bytes] | None = None,
    *,
    init_classes: InitClasses = "same",
    further_classes: Mapping[str, Classes] | None = None,
) -> Transplant:
    """Give a network its first weights.

    A fourth and further channel of the image starts as the mean of the source's three. Of
    several modalities, the trunk of each starts with what a classifier's file holds.

    Args:
        net: The network, changed in place.
        init: "none" keeps the random start; "imagenet" takes torchvision's weights of the
            backbone; anything else names a file that ``read`` can read:

            - a model of ours with the same backbone (a coarser stride, for staged training),
            - torchvision's ImageNet weights of the backbone as ``.pth`` or safetensors,
            - a ``.caffemodel``: an FCN of the authors or the classifier below it (VGG16,
              CaffeNet); the former also as the ``.pth`` of its PyTorch port, which is taken
              to be trained at once if ``net`` is,
            - SqueezeNet's ImageNet weights as ``.npz``.
        classes: The classes to be trained, compared with those of a model of ours.
        read: Gives the bytes of a named file.
        init_classes: "same" asks for a source with the same classes. "by_name" keeps the
            scores of classes that the source has under the same name; others start at zero.
        further_classes: Of the other heads, by name; a class is the same only in the same head.

    Raises:
        CheckpointError: The file holds no such weights, or weights of other shapes, another
            backbone or other classes.
        ValueError: a file is named but ``read`` is not given.
    """
    if init == "none":
        done = Transplant(input=TORCHVISION, left=tuple(net.state_dict()))
    elif init == "imagenet":
        done = _from_imagenet(net)
    elif read is None:
        raise ValueError(f"init={init!r} names a file, but no way to read one was given")
    else:
        data = read(init)
        digest = hashlib.sha256(data).hexdigest()
        names = _channels(classes, further_classes or {})
        done = _from_file(net, data, names, init_classes).model_copy(update={"sha256": digest})
    if done.copied:
        _logger.info(
            "first weights: %d transplanted, %d of them coerced; %d keep their start",
            *map(len, (done.copied, done.coerced, done.left)),
        )
    else:
        _logger.info(
            "first weights: none from another network, all %d tensors start anew", len(done.left)
        )
    return done


def _channels(classes: Classes, further: Mapping[str, Classes]) -> tuple[str, ...]:
    """A name for every channel of the scores; classes of further heads as ``head: class``."""
    others = (f"{head}: {name}" for head, c in further.items() for name in c.names)
    return (*classes.names, *others)


def _from_file(
    net: FCN, data: bytes, names: Sequence[str], init_classes: InitClasses
) -> Transplant:
    """Weights from a file, whose bytes tell what it is."""
    if data.startswith(ZIP) and holds_arrays(data):
        return _copy(net, read_squeezenet(net, data), CAFFE)
    if is_safetensors(data) and CARD_KEY in read_safetensors(data)[1]:
        model = load(data)
        own = _channels(model.classes, model.further_classes)
        return _from_model(net, model.net, own, model.input, names, init_classes)
    if is_safetensors(data) or data.startswith((ZIP, PICKLE)):
        tensors = read_state_dict(data)
        if not is_released(tensors):
            return _from_classifier(net, tensors)
        source = released_net(tensors, at_once=net.at_once)  # of the port, which does not tell
        return _from_released(net, source, names, init_classes)
    if looks_like_caffemodel(data):
        tensors = read_caffemodel(data)
        if "fc8.weight" in tensors:
            return _from_released_classifier(net, tensors)
        return _from_released(net, released_net(tensors), names, init_classes)
    raise CheckpointError(
        "init is not a safetensors file, nor .pth, .npz or .caffemodel: it begins with "
        f"{data[:8]!r}"
    )


def _from_imagenet(net: FCN) -> Transplant:
    """Torchvision's classifier weights, downloaded by torchvision."""
    name = TRUNKS[net.backbone].weights
    if name is None:
        raise CheckpointError(
            f"torchvision has no ImageNet weights of {net.backbone}; give init='none', or the URL "
            "of a file, such as its .caffemodel"
        )
    weights = get_weight(name)
    try:
        state = checked(weights.get_state_dict(progress=False, check_hash=True, weights_only=True))
    except (*ERRORS, CheckpointError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"torchvision's ImageNet weights of {net.backbone} cannot be had from {weights.url}, "
            f"or from {Path(get_dir(), 'checkpoints')}, where a download is kept: {reason}; remove "
            "a damaged file there, or give init='none', or a file"
        ) from error
    return _from_classifier(net, state)


def _from_classifier(net: FCN, state: Mapping[str, Tensor]) -> Transplant:
    """Torchvision's classifier weights, its Linear layers reshaped to convolutions."""
    with torch.device("meta"):
        source = classifier(net.backbone)
    # A ResNet-34 has all that a ResNet-18 has, under the same names and shapes, and more.
    unknown = sorted(state.keys() - source.state_dict().keys())
    if unknown:
        raise CheckpointError(
            f"init holds {len(unknown)} weights that {net.backbone} does not have, first "
            f"{unknown[0]}; give the weights of that very classifier"
        )
    tensors = {f"trunk.{name}": tensor for name, tensor in state.items()}
    own = [name for name, _ in net.head.named_children() if name in {"fc6", "fc7"}]
    linear = [name for name, layer in source.named_modules() if isinstance(layer, nn.Linear)]
    coerced = []
    for layer, old in zip(own, linear, strict=False):
        for kind in ("weight", "bias"):
            name = f"head.{layer}.{kind}"
            tensors[name] = fitted(f"{old}.{kind}", state.get(f"{old}.{kind}"), _shape(net, name))
        coerced.append(f"head.{layer}.weight")
    return _copy(net, tensors, TRUNKS[net.backbone].input, coerced)


def _from_released(
    net: FCN, source: FCN, names: Sequence[str], init_classes: InitClasses
) -> Transplant:
    """An FCN of the authors. Its file names no classes: their numbers are compared."""
    sizes = [list((n.heads or {"": n.num_classes}).values()) for n in (source, net)]
    if init_classes == "same" and sizes[0] != sizes[1]:
        found, wanted = (" + ".join(map(str, size)) for size in sizes)
        raise CheckpointError(
            f"init is a network of {found} classes, but the dataset has {wanted} "
            f"({_some(names)}); init_classes='by_name' starts their scores at zero"
        )
    nameless = [f"init class {index}" for index in range(source.num_classes)]
    own = names if init_classes == "same" else nameless
    spec = RELEASE if source.modalities is None else NYUD_COLOR_HHA
    return _from_model(net, source, own, spec, names, init_classes)


def _from_released_classifier(net: FCN, tensors: Mapping[str, Tensor]) -> Transplant:
    """The ILSVRC classifier that the authors cast: VGG16 or CaffeNet under Caffe's names."""
    if net.backbone not in {"vgg16", "caffenet"}:
        raise CheckpointError(
            f"init is a Caffe classifier, VGG16 or CaffeNet; backbone={net.backbone} was asked for"
        )
    names = {own: name for own, name in released_names(net).items() if name in tensors}
    own_first = f"trunk.{first_convolution(net.trunk)[0]}.weight"
    taken = {
        own: tensors[name] if own == own_first else fitted(name, tensors[name], _shape(net, own))
        for own, name in names.items()
    }
    coerced = [name for name in taken if tensors[names[name]].shape != taken[name].shape]
    return _copy(net, taken, CAFFE, coerced)


def _from_model(
    net: FCN,
    source: FCN,
    own_names: Sequence[str],
    spec: InputSpec,
    names: Sequence[str],
    init_classes: InitClasses,
) -> Transplant:
    """Another FCN, whose channels are named ``own_names`` where ours are named ``names``."""
    if source.backbone != net.backbone:
        raise CheckpointError(
            f"init is a model on {source.backbone}, but backbone={net.backbone} was asked for"
        )
    if source.modalities != net.modalities:
        raise CheckpointError(
            f"init is a model of {_trunks(source)}, but one of {_trunks(net)} was asked for"
        )
    if len(source.fuse) and source.at_once != net.at_once:
        raise CheckpointError(
            f"init is a model with at_once={source.at_once}, but at_once={net.at_once} was "
            "asked for; its scores are of maps on another scale"
        )
    same = tuple(own_names) == tuple(names)
    if not same and init_classes == "same":
        raise CheckpointError(
            f"init is a model of {len(own_names)} classes ({_some(own_names)}), but the "
            f"dataset has {len(names)} ({_some(names)}); start from one with the same classes, "
            "or with init_classes='by_name'"
        )
    tensors = source.state_dict()
    if source.stride != net.stride:
        tensors = {n: t for n, t in tensors.items() if not n.startswith("upscore.")}
    chosen = [] if same else [n for n in tensors if not _BELOW_SCORES.match(n)]
    own = net.state_dict()
    for name in chosen:
        if name in own:
            tensors[name] = _by_name(own[name], tensors[name], names, own_names)
    done = _copy(net, tensors, spec, chosen)
    return done.model_copy(update={"from_stride": source.stride})


def _trunks(net: FCN) -> str:
    if net.modalities is None:
        return "one trunk"
    return f"trunks for {' + '.join(map(str, net.modalities))} channels (late fusion)"


def _by_name(
    own: Tensor, tensor: Tensor, names: Sequence[str], source_names: Sequence[str]
) -> Tensor:
    """``own`` with the rows of the classes that the source has under the same name."""
    rows = own.clone()
    for index, name in enumerate(names):
        if name in source_names:
            rows[index] = tensor[source_names.index(name)]
    return rows


def _copy(
    net: FCN, tensors: Mapping[str, Tensor], spec: InputSpec, coerced: Sequence[str] = ()
) -> Transplant:
    """Copy by name; every shape must fit, and every layer of the trunk must be there."""
    own = net.state_dict()
    tensors, coerced = _in_every_trunk(net, tensors, coerced)
    first = f"trunk.{first_convolution(net.trunk)[0]}.weight"
    for name in own:
        if name.endswith(first) and name in tensors and _sees_more(own[name], tensors[name]):
            tensors = {**tensors, name: _widened(tensors[name], own[name].shape[1])}
            coerced = [*coerced, name]
    wrong = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} weights of init have another shape: {name} is "
            f"{shape_text(tensors[name].shape)}, expected {shape_text(own[name].shape)}"
        )
    copied = tuple(name for name in own if name in tensors)
    left = tuple(name for name in own if name not in tensors)
    missing = [n for n in left if _BELOW_SCORES.match(n) and "num_batches" not in n]
    if missing:
        raise CheckpointError(
            f"init lacks {len(missing)} of the weights of {net.backbone}, first {missing[0]}"
        )
    net.load_state_dict({name: tensors[name] for name in copied}, strict=False)
    shaped = tuple(name for name in copied if name in set(coerced))
    return Transplant(input=spec, copied=copied, coerced=shaped, left=left)


def _in_every_trunk(
    net: FCN, tensors: Mapping[str, Tensor], coerced: Sequence[str]
) -> tuple[Mapping[str, Tensor], Sequence[str]]:
    """Weights, and names of those coerced, with one trunk's for all trunks that have none."""
    for index in range(len(net.beside)):
        prefix = f"beside.{index}."
        if not any(name.startswith(prefix) for name in tensors):
            below = [name for name in tensors if name.startswith(("trunk.", "head."))]
            coerced = [*coerced, *(prefix + name for name in below if name in coerced)]
            tensors = {**tensors, **{prefix + name: tensors[name] for name in below}}
    return tensors, coerced


def _sees_more(own: Tensor, tensor: Tensor) -> bool:
    """The source's first convolution sees three channels, ours another number."""
    fits = tensor.ndim == 4 and tensor.shape[1] == 3 and tensor.shape[2:] == own.shape[2:]
    return fits and own.shape[1] != 3


def _widened(weight: Tensor, in_channels: int) -> Tensor:
    """Weights for more channels: the three, and their mean for each further one."""
    mean = weight.mean(dim=1, keepdim=True)
    if in_channels < 3:
        return mean.repeat(1, in_channels, 1, 1)
    return torch.cat([weight, mean.expand(-1, in_channels - 3, -1, -1)], dim=1)


def _shape(net: FCN, name: str) -> torch.Size:
    return net.get_parameter(name).shape


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", …" if len(names) > 4 else "")
