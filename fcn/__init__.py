"""Fully convolutional networks for semantic segmentation, after Long, Shelhamer and Darrell.

A ladder of three: a network on tensors (`FCN`), a predictor on images (`Predictor`), and a
command on files (``python -m fcn predict``).

The names below are imported when they are first asked for: a process that decodes images
(`fcn.decoders`) starts in a tenth of a second, without torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fcn.averaging import AveragedPredictor
    from fcn.bands import Band, decode_band
    from fcn.boundary import boundary_f1
    from fcn.checkpoint import Model, save
    from fcn.classes import IGNORE_INDEX, Classes
    from fcn.errors import FcnError
    from fcn.input import InputSpec
    from fcn.loading import load
    from fcn.masks import decode_mask, encode_mask
    from fcn.metrics import Scores, confusion
    from fcn.model import FCN
    from fcn.predict import Prediction, Predictor
    from fcn.released import load_caffemodel, load_torchfcn

__all__ = [
    "FCN",
    "IGNORE_INDEX",
    "AveragedPredictor",
    "Band",
    "Classes",
    "FcnError",
    "InputSpec",
    "Model",
    "Prediction",
    "Predictor",
    "Scores",
    "boundary_f1",
    "confusion",
    "decode_band",
    "decode_mask",
    "encode_mask",
    "load",
    "load_caffemodel",
    "load_torchfcn",
    "save",
]

_HOMES = {
    "averaging": ("AveragedPredictor",),
    "bands": ("Band", "decode_band"),
    "boundary": ("boundary_f1",),
    "checkpoint": ("Model", "save"),
    "classes": ("IGNORE_INDEX", "Classes"),
    "errors": ("FcnError",),
    "input": ("InputSpec",),
    "loading": ("load",),
    "masks": ("decode_mask", "encode_mask"),
    "metrics": ("Scores", "confusion"),
    "model": ("FCN",),
    "predict": ("Prediction", "Predictor"),
    "released": ("load_caffemodel", "load_torchfcn"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"fcn.{home}"), name)
    raise AttributeError(f"module 'fcn' has no attribute {name!r}")
