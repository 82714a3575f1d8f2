"""PyTorch's state dicts: weights by name, without running what a pickle says."""

import io
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

from fcn.checkpoint import MAX_NAME, check_names, is_safetensors, read_safetensors
from fcn.errors import CheckpointError

MAX_UNPACKED_BYTES = 4 << 30
"""Limit on what an archive unpacks to, and on its tensors; the largest trunk has a seventh."""

ZIP, PICKLE = b"PK\x03\x04", b"\x80"
"""What files begin with: torch.save's since 1.6 and .npz, and torch.save's before."""

_WITHIN = ("model_state_dict", "state_dict", "model")
"""Where training checkpoints keep the state dict of their network."""

ERRORS = (
    pickle.UnpicklingError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    AssertionError,
    AttributeError,
    EOFError,
    LookupError,
    MemoryError,
    OSError,
    OverflowError,
    RecursionError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What torch.load says of files that are damaged, or that ask for more than weights."""


def read_state_dict(data: bytes) -> dict[str, Tensor]:
    """Float32 weights by name, from the bytes of a ``.pth`` or safetensors file.

    A pickle is read by torch's weights-only unpickler: it builds tensors and containers, and
    refuses everything else a pickle can name. See ``docs/decisions/state-dicts.md``.

    Raises:
        CheckpointError: The bytes are damaged, hold more than weights, or unpack to more than
            `MAX_UNPACKED_BYTES`, as an archive or as float32 tensors.
    """
    return checked(read_safetensors(data)[0] if is_safetensors(data) else _unpickled(data))


def checked(content: object) -> dict[str, Tensor]:
    """Float32 weights by name, of whatever came out of a file.

    Raises:
        CheckpointError: It is no dict of plain tensors, or they take more than
            `MAX_UNPACKED_BYTES` as float32.
    """
    if not isinstance(content, Mapping) or not content:
        found = f"a {type(content).__name__}" if content else "nothing"
        raise CheckpointError(f"a file that holds {found}; expected a state dict")
    check_names(content)
    odd = [key for key, value in content.items() if not _is_weight(key, value)]
    if odd:
        raise CheckpointError(
            f"a file whose {repr(odd[0])[:MAX_NAME]} is no weight; expected a state dict"
        )
    tensors: dict[str, Tensor] = dict(content)
    wrong = [name for name, tensor in tensors.items() if not _is_plain(tensor)]
    if wrong:
        raise CheckpointError(f"{wrong[0]!r} is no plain tensor of numbers on a CPU")
    # A tensor may repeat few numbers of its file over any shape, by strides of 0.
    size = sum(4 * tensor.numel() for tensor in tensors.values())
    if size > MAX_UNPACKED_BYTES:
        raise CheckpointError(
            f"the state dict's tensors take {size:,} bytes, above {MAX_UNPACKED_BYTES:,}"
        )
    return {name: t.float() if t.is_floating_point() else t for name, t in tensors.items()}


def _unpickled(data: bytes) -> object:
    try:
        if data.startswith(ZIP):
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_UNPACKED_BYTES:
                raise CheckpointError(
                    f"the state dict unpacks to {size:,} bytes, above {MAX_UNPACKED_BYTES:,}"
                )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice to whoever wrote the file
            content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except ERRORS as error:
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(f"not a readable state dict of PyTorch: {reason}") from error
    for name in _WITHIN:
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    return content


def _is_weight(key: object, value: object) -> bool:
    return isinstance(key, str) and isinstance(value, Tensor)


def _is_plain(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and not tensor.is_quantized
    return plain and tensor.device.type == "cpu" and not tensor.is_complex()
