"""Fully convolutional networks for semantic segmentation, after Long, Shelhamer and Darrell.

A ladder of three: a network on tensors (`FCN`), a predictor on images (`Predictor`), and a
command on files (``python -m fcn predict``).
"""

from fcn.averaging import AveragedPredictor
from fcn.boundary import boundary_f1
from fcn.checkpoint import Model, load, save
from fcn.classes import IGNORE_INDEX, Classes
from fcn.errors import FcnError
from fcn.input import InputSpec
from fcn.masks import decode_mask, encode_mask
from fcn.metrics import Scores, confusion
from fcn.model import FCN
from fcn.predict import Prediction, Predictor

__all__ = [
    "FCN",
    "IGNORE_INDEX",
    "AveragedPredictor",
    "Classes",
    "FcnError",
    "InputSpec",
    "Model",
    "Prediction",
    "Predictor",
    "Scores",
    "boundary_f1",
    "confusion",
    "decode_mask",
    "encode_mask",
    "load",
    "save",
]
