"""Which device a network runs on, in which precision, and whether to the same bits."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, get_args

import torch

from fcn.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16", "fp16"]


def find_device(device: str) -> torch.device:
    """The named device; "auto" is the GPU where there is one.

    Raises:
        DeviceError: a device this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise DeviceError(f"device {device!r} cannot be used here: {reason}") from error
    return found


def resolve_precision(
    device: torch.device, precision: Precision
) -> Literal["fp32", "bf16", "fp16"]:
    """What "auto" is on a device: bfloat16 on a GPU that has it, else float32.

    Raises:
        ValueError: an unknown precision.
    """
    if precision not in get_args(Precision):
        known = ", ".join(get_args(Precision))
        raise ValueError(f"unknown precision {precision!r}; known are {known}")
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context to run a network in.

    Raises:
        ValueError: an unknown precision.
    """
    resolved = resolve_precision(device, precision)
    if resolved == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if resolved == "bf16" else torch.float16)


@contextmanager
def deterministic() -> Iterator[None]:
    """A context in which PyTorch computes the same bits every time, or raises RuntimeError.

    On a GPU the environment must hold ``CUBLAS_WORKSPACE_CONFIG=:4096:8`` before the first
    product of matrices.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)
