"""Choices that are named before PyTorch is imported."""

from typing import Literal

Backend = Literal["auto", "torch", "onnxruntime", "openvino"]
"""What runs a network, see `fcn.backends`."""
