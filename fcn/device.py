"""Which device a network runs on, and in which precision."""

from contextlib import AbstractContextManager, nullcontext
from typing import Annotated, Literal

import torch
from pydantic import Field

from fcn.errors import DeviceError

Precision = Literal["auto", "fp32", "bf16"]

Device = Annotated[str, Field(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
"""Names of devices in settings: auto (a GPU where there is one), cpu, cuda, cuda:1, …"""


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


def resolve_precision(device: torch.device, precision: Precision) -> Literal["fp32", "bf16"]:
    """What "auto" is on a device: bfloat16 on a GPU that has it, else float32."""
    if precision != "auto":
        return precision
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


def autocast(device: torch.device, precision: Precision) -> AbstractContextManager[object]:
    """The context to run a network in."""
    if resolve_precision(device, precision) == "bf16":
        return torch.autocast(device.type, torch.bfloat16)
    return nullcontext()
