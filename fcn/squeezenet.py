"""SqueezeNet 1.1's released ImageNet weights, as an ``.npz`` under their Caffe names."""

import io
import tokenize
import zipfile
import zlib

import numpy as np
import torch
from torch import Tensor

from fcn.checkpoint import check_names
from fcn.errors import CheckpointError
from fcn.model import FCN
from fcn.state_dicts import MAX_UNPACKED_BYTES

_NPZ_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,  # an array's header is read as Python's literals
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RuntimeError,  # an encrypted archive; NotImplementedError, an unknown compression
    TypeError,
    ValueError,
)
"""What zipfile and numpy say of archives that are damaged, or no archives."""


def read_squeezenet(net: FCN, data: bytes) -> dict[str, Tensor]:
    """The trunk's weights by our names, from an ``.npz`` of the released ones.

    Raises:
        CheckpointError: The network is on another trunk, or the file is damaged, unpacks to
            more than `MAX_UNPACKED_BYTES`, or lacks a layer.
    """
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


def holds_arrays(data: bytes) -> bool:
    """A zip file is no file of torch.save, which would hold a pickle."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return not any(name.endswith("data.pkl") for name in archive.namelist())
    except _NPZ_ERRORS:
        return True  # read as an .npz, which then says what is wrong


def _arrays(data: bytes) -> dict[str, np.ndarray]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
        check_names(names)
        others = [name for name in names if not name.endswith(".npy")]
        if others:
            raise CheckpointError(
                f"a zip file with {others[0]!r} in it; expected an .npz of arrays, a .pth of "
                "torch.save, or a model.safetensors"
            )
        if size > MAX_UNPACKED_BYTES:
            raise CheckpointError(
                f"the .npz unpacks to {size:,} bytes, above {MAX_UNPACKED_BYTES:,}"
            )
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except _NPZ_ERRORS as error:
        raise CheckpointError(f"not a readable .npz file: {str(error)[:200]}") from error
