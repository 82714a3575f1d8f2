"""Reading of model files: the first thing a program does, so without waiting for PyTorch."""

import hashlib
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from fcn.checkpoint import Model


def load(file: "bytes | str | Path | BinaryIO") -> "Model":
    """Read a model file of ours. No code from the file is run.

    Where PyTorch is not imported yet, that happens while the file is read and hashed.

    Raises:
        CheckpointError: The bytes are no safetensors file, hold no card of ours, or their
            weights do not fit the architecture on the card or are not those that were saved.
        OSError: The file cannot be opened.
    """
    with ThreadPoolExecutor(2) as beside:  # reading and hashing let the interpreter go
        data = beside.submit(file_bytes, file)
        digest = beside.submit(lambda: weights_digest(data.result()))
        from fcn.checkpoint import model_of  # noqa: PLC0415 - imports torch

        return model_of(data.result(), digest)


def weights_digest(data: bytes) -> str:
    """SHA-256 of what follows the header of a safetensors file."""
    (size,) = struct.unpack_from("<Q", data)
    return hashlib.sha256(memoryview(data)[8 + size :]).hexdigest()


def file_bytes(file: "bytes | str | Path | BinaryIO") -> bytes:
    """The bytes of a file, however it is given.

    Raises:
        OSError: The file cannot be opened.
    """
    if isinstance(file, bytes):
        return file
    if isinstance(file, str | Path):
        return Path(file).read_bytes()
    return file.read()
