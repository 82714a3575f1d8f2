"""Post-training quantisation: a trained network computed with 8-bit integers on a CPU.

Weights are rounded as they are, with a scale for every output channel. What the inputs of the
convolutions range over has to be seen: `quantise` looks at images of the kind the network was
trained on. Source of the scheme: Jacob et al., "Quantization and Training of Neural Networks
for Efficient Integer-Arithmetic-Only Inference" (CVPR 2018), its section 3 without training.

The result is a model file like any other, with the same weights and the ranges on its card; it
runs in OpenVINO and ONNX Runtime. What it costs in accuracy differs from network to network,
so measure it before use; the flow `quantise` does, and refuses when it is too much.
"""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fcn.checkpoint import Model, check_sees_images

MAX_PIXELS = 1_000_000
"""Pixels of an image that are looked at: a window in its middle, of larger ones."""


def quantise(model: Model, images: Iterable[np.ndarray]) -> Model:
    """The model with the ranges of its layers' inputs, the mean over images of their extremes.

    A mean, because a single extreme value would make the steps between integers coarse for
    all others; what lies beyond is cut off.

    Args:
        model: a trained model.
        images: Some dozens, as `fcn.predict.Predictor` takes them; looked at one by one, in torch.

    Raises:
        ValueError: no image, an array that is none, or a model that is quantised already or of
            other channels than three and its bands.
    """
    check_sees_images(model)
    if model.ranges is not None:
        raise ValueError("the model is quantised already; take the one that it was made from")
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with torch.inference_mode(), _watched(model.net.eval(), seen):
        for image in images:
            (seen_as,) = model.input.check_images([image])
            pixels = torch.from_numpy(np.ascontiguousarray(_middle(seen_as)))
            device = next(model.net.parameters()).device
            model.net.score_maps(model.input.normalise(pixels[None].permute(0, 3, 1, 2).to(device)))
    if not seen:
        raise ValueError("no image to see the ranges of the network's layers on")
    means = {name: np.mean(extremes, axis=0).tolist() for name, extremes in seen.items()}
    return dataclasses.replace(
        model, ranges={name: (low, high) for name, (low, high) in means.items()}
    )


@contextmanager
def _watched(net: nn.Module, seen: dict[str, list[tuple[float, float]]]) -> Iterator[None]:
    """Note the extremes of every convolution's inputs, and 0, which paddings hold."""

    def watch(name: str) -> Callable[[nn.Module, Any], None]:
        def look(_: nn.Module, inputs: tuple[Tensor]) -> None:
            low, high = (float(extreme) for extreme in inputs[0].aminmax())
            seen[name].append((min(low, 0.0), max(high, 0.0)))

        return look

    layers = [(name, layer) for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)]
    hooks = [layer.register_forward_pre_hook(watch(name)) for name, layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _middle(image: np.ndarray) -> np.ndarray:
    """The middle of an image, where it has more than `MAX_PIXELS`."""
    height, width = image.shape[:2]
    share = math.sqrt(min(1, MAX_PIXELS / (height * width)))
    top, left = (round(side * (1 - share) / 2) for side in (height, width))
    return image[top : height - top, left : width - left]
