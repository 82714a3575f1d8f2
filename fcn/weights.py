"""Where a network's first weights come from."""

import io
import zipfile
import zlib
from collections.abc import Callable, Mapping

import numpy as np
import torch
import torchvision
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from fcn.checkpoint import load
from fcn.classes import Classes
from fcn.errors import CheckpointError
from fcn.input import CAFFE, TORCHVISION, InputSpec
from fcn.model import FCN
from fcn.trunks import TRUNKS, convolutionalise

MAX_NPZ_BYTES = 4 << 30
"""Limit on what an ``.npz`` unpacks to; the largest trunk has a seventh of it."""

_ZIP = b"PK\x03\x04"


class Transplant(BaseModel):
    """What a transplant did.

    Attributes:
        input: The input that the transplanted weights want.
        copied: Names of the weights now equal to the source's.
        left: Names of the weights that the source does not have.
        from_stride: Stride of the FCN the weights came from; None for a classifier.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: InputSpec
    copied: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    from_stride: int | None = None


def transplant(
    net: FCN, init: str, classes: Classes, read: Callable[[str], bytes] | None = None
) -> Transplant:
    """Give a network its first weights.

    Args:
        net: The network, changed in place.
        init: "none" keeps the random start; "imagenet" takes torchvision's weights of the
            backbone; anything else names a file that ``read`` can read: a model of ours
            with the same backbone and classes (a coarser stride, for staged training), or
            SqueezeNet's ImageNet weights as ``.npz``.
        classes: The classes to be trained, compared with those of a model of ours.
        read: Gives the bytes of a named file.

    Raises:
        CheckpointError: The file holds no such weights, or weights of other shapes, another
            backbone or other classes.
        ValueError: a file is named but ``read`` is not given.
    """
    if init == "none":
        return Transplant(input=TORCHVISION, left=tuple(net.state_dict()))
    if init == "imagenet":
        return _from_imagenet(net)
    if read is None:
        raise ValueError(f"init={init!r} names a file, but no way to read one was given")
    data = read(init)
    if data[:4] == _ZIP:
        return _copy(net, _squeezenet(net, data), CAFFE)
    return _from_model(net, data, classes)


def _from_imagenet(net: FCN) -> Transplant:
    """Torchvision's classifier weights, its Linear layers reshaped to convolutions."""
    weights = torchvision.models.get_weight(TRUNKS[net.backbone].weights)
    try:
        state = weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"torchvision's ImageNet weights of {net.backbone} cannot be had from {weights.url}: "
            f"{error}; give init='none', or a file"
        ) from error
    tensors = {f"trunk.{name}": tensor for name, tensor in state.items()}
    for layer, old in (("fc6", "classifier.0"), ("fc7", "classifier.3")):
        if hasattr(net.head, layer):
            grid = getattr(net.head, layer).kernel_size[0]
            weight, bias = (state[f"{old}.{kind}"] for kind in ("weight", "bias"))
            linear = torch.nn.Linear(weight.shape[1], weight.shape[0], device="meta")
            linear.load_state_dict({"weight": weight, "bias": bias}, assign=True)
            conv = convolutionalise(linear, grid)
            tensors |= {f"head.{layer}.{name}": w for name, w in conv.state_dict().items()}
    return _copy(net, tensors, TORCHVISION)


def _from_model(net: FCN, data: bytes, classes: Classes) -> Transplant:
    source = load(data)
    if source.net.backbone != net.backbone:
        raise CheckpointError(
            f"init is a model on {source.net.backbone}, but backbone={net.backbone} was asked for"
        )
    if source.classes.names != classes.names:
        raise CheckpointError(
            f"init is a model of {len(source.classes)} classes ({_some(source.classes)}), but the "
            f"dataset has {len(classes)} ({_some(classes)}); start from one with the same classes"
        )
    upscored = {n for n in source.net.state_dict() if n.startswith("upscore.")}
    tensors = {n: t for n, t in source.net.state_dict().items() if n not in upscored}
    if source.net.stride == net.stride:
        tensors = source.net.state_dict()
    done = _copy(net, tensors, source.input)
    return done.model_copy(update={"from_stride": source.net.stride})


def _copy(net: FCN, tensors: Mapping[str, Tensor], spec: InputSpec) -> Transplant:
    """Copy by name; every shape must fit, and every layer of the trunk must be there."""
    own = net.state_dict()
    wrong = [name for name in own if name in tensors and own[name].shape != tensors[name].shape]
    if wrong:
        name = wrong[0]
        raise CheckpointError(
            f"{len(wrong)} weights of init have another shape: {name} is "
            f"{tuple(tensors[name].shape)}, expected {tuple(own[name].shape)}"
        )
    copied = tuple(name for name in own if name in tensors)
    left = tuple(name for name in own if name not in tensors)
    missing = [n for n in left if n.startswith(("trunk.", "head.")) and "num_batches" not in n]
    if missing:
        raise CheckpointError(
            f"init lacks {len(missing)} of the weights of {net.backbone}, first {missing[0]}"
        )
    net.load_state_dict({name: tensors[name] for name in copied}, strict=False)
    return Transplant(input=spec, copied=copied, left=left)


def _squeezenet(net: FCN, data: bytes) -> dict[str, Tensor]:
    """SqueezeNet 1.1 from an ``.npz`` of its Caffe names (``fire2/squeeze1x1_w``, …)."""
    if net.backbone != "squeezenet1_1":
        raise CheckpointError(f".npz weights are known for squeezenet1_1, not for {net.backbone}")
    arrays = _arrays(data)
    tensors = {}
    for name in net.trunk.state_dict():
        caffe = _caffe_name(name)
        if caffe not in arrays:
            raise CheckpointError(f"the .npz has no {caffe!r}; it holds {sorted(arrays)[:4]} …")
        if arrays[caffe].dtype.kind != "f":
            raise CheckpointError(f"{caffe!r} of the .npz holds {arrays[caffe].dtype}, not floats")
        tensors[f"trunk.{name}"] = torch.from_numpy(arrays[caffe].astype(np.float32))
    return tensors


_FIRES = {3: 2, 4: 3, 6: 4, 7: 5, 9: 6, 10: 7, 11: 8, 12: 9}
"""Index of each fire module in torchvision's SqueezeNet 1.1 to its number in the paper."""


def _caffe_name(name: str) -> str:
    """``features.3.squeeze.weight`` is ``fire2/squeeze1x1.weight`` in the released network."""
    _, index, *rest = name.split(".")
    if index == "0":
        return f"conv1.{rest[0]}"
    layer = "squeeze1x1" if rest[0] == "squeeze" else rest[0]
    return f"fire{_FIRES[int(index)]}/{layer}.{rest[1]}"


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            others = [name for name in archive.namelist() if not name.endswith(".npy")]
        if others:
            raise CheckpointError(
                f"a zip file with {others[0]!r} in it; expected an .npz of arrays or a "
                "model.safetensors (PyTorch's own .pth files are pickles and are not read)"
            )
        if size > MAX_NPZ_BYTES:
            raise CheckpointError(f"the .npz unpacks to {size:,} bytes, above {MAX_NPZ_BYTES:,}")
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except _NPZ_ERRORS as error:
        raise CheckpointError(f"not a readable .npz file: {error}") from error


_NPZ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    ValueError,
    EOFError,
    OSError,
    MemoryError,
    RuntimeError,  # an encrypted archive; NotImplementedError, an unknown compression
)


def _some(classes: Classes) -> str:
    names = ", ".join(classes.names[:4])
    return names if len(classes) <= 4 else f"{names}, …"
