"""Which device a network runs on, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch

from fcn.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16"]


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


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context to run a network in: bfloat16 where asked for, or "auto" on a GPU that has it."""
    wanted = precision == "bf16"
    if precision == "auto":
        wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16) if wanted else nullcontext()
