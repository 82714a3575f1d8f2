"""The authors' networks as their release defines them, in plain functions.

Source: the ``net.py`` of each network in github.com/shelhamer/fcn.berkeleyvision.org. Crops are
those of its prototxt files. Weights are a dict of arrays by layer, upsampling dense.
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Layers = Mapping[str, list[np.ndarray]]

BLOCKS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
WIDTHS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}


def bilinear(classes: int, size: int) -> np.ndarray:
    """A dense upsampling kernel ``C x C x size x size``, bilinear from a class to itself."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    line = np.array([1 - abs(i - centre) / factor for i in range(size)])
    kernel = np.zeros((classes, classes, size, size), np.float32)
    for index in range(classes):
        kernel[index, index] = np.outer(line, line)
    return kernel


def conv(x: Tensor, layers: Layers, name: str, **settings: int) -> Tensor:
    weight, bias = (torch.from_numpy(array) for array in layers[name])
    return functional.conv2d(x, weight, bias, **settings)  # type: ignore[arg-type]


def deconv(x: Tensor, layers: Layers, name: str, stride: int) -> Tensor:
    (weight,) = layers[name]
    return functional.conv_transpose2d(x, torch.from_numpy(weight), stride=stride)


def crop(x: Tensor, offset: int, like: Tensor) -> Tensor:
    height, width = like.shape[2:]
    return x[:, :, offset : offset + height, offset : offset + width]


def vgg_maps(layers: Layers, image: Tensor, first: str = "conv1_1") -> dict[str, Tensor]:
    """pool3, pool4 and fc7."""
    maps = {}
    x = image
    for block, count in BLOCKS.items():
        for number in range(1, count + 1):
            name = f"conv{block}_{number}"
            if name == "conv1_1":
                x = functional.relu(conv(x, layers, first, padding=100))
            else:
                x = functional.relu(conv(x, layers, name, padding=1))
        x = functional.max_pool2d(x, 2, 2, ceil_mode=True)
        maps[f"pool{block}"] = x
    x = functional.relu(conv(x, layers, "fc6"))
    maps["fc7"] = functional.relu(conv(x, layers, "fc7"))
    return maps


def vgg_scores(
    layers: Layers, maps: Mapping[str, Tensor], image: Tensor, stride: int, head: str = ""
) -> Tensor:
    score = conv(maps["fc7"], layers, f"score_fr{head}")
    if stride == 32:
        return crop(deconv(score, layers, f"upscore{head}", 32), 19, image)
    upscore2 = deconv(score, layers, f"upscore2{head}", 2)
    pool4 = scaled(layers, maps, "pool4")
    fuse = upscore2 + crop(conv(pool4, layers, f"score_pool4{head}"), 5, upscore2)
    if stride == 16:
        return crop(deconv(fuse, layers, f"upscore16{head}", 16), 27, image)
    upscore_pool4 = deconv(fuse, layers, f"upscore_pool4{head}", 2)
    pool3 = scaled(layers, maps, "pool3")
    fuse = upscore_pool4 + crop(conv(pool3, layers, f"score_pool3{head}"), 9, upscore_pool4)
    return crop(deconv(fuse, layers, f"upscore8{head}", 8), 31, image)


def color_hha_scores(layers: Layers, image: Tensor) -> Tensor:
    """``nyud-fcn32s-color-hha``: two trunks, ``score_fused`` with the coefficients 0.5 and 0.5."""
    scores = []
    for modality, seen in (("color", image[:, :3]), ("hha", image[:, 3:])):
        own = {n.removesuffix(modality): a for n, a in layers.items() if n.endswith(modality)}
        scores.append(conv(vgg_maps(own, seen)["fc7"], own, "score_fr"))
    fused = 0.5 * scores[0] + 0.5 * scores[1]
    return crop(deconv(fused, layers, "upscore", 32), 19, image)


def scaled(layers: Layers, maps: Mapping[str, Tensor], pool: str) -> Tensor:
    if f"scale_{pool}" not in layers:
        return maps[pool]
    (scale,) = layers[f"scale_{pool}"]
    return maps[pool] * torch.from_numpy(scale)[None, :, None, None]


def alexnet_scores(layers: Layers, image: Tensor) -> Tensor:
    x = functional.relu(conv(image, layers, "conv1", stride=4, padding=100))
    x = normalised(functional.max_pool2d(x, 3, 2, ceil_mode=True))
    x = functional.relu(conv(x, layers, "conv2", padding=2, groups=2))
    x = normalised(functional.max_pool2d(x, 3, 2, ceil_mode=True))
    x = functional.relu(conv(x, layers, "conv3", padding=1))
    x = functional.relu(conv(x, layers, "conv4", padding=1, groups=2))
    x = functional.relu(conv(x, layers, "conv5", padding=1, groups=2))
    x = functional.max_pool2d(x, 3, 2, ceil_mode=True)
    x = functional.relu(conv(functional.relu(conv(x, layers, "fc6")), layers, "fc7"))
    return crop(deconv(conv(x, layers, "score_fr"), layers, "upscore", 32), 18, image)


def normalised(x: Tensor) -> Tensor:
    """Local response normalisation across 5 channels, alpha 1e-4, beta 0.75."""
    squares = functional.pad(x**2, (0, 0, 0, 0, 2, 2))
    total = sum(squares[:, shift : shift + x.shape[1]] for shift in range(5))
    return x / (1 + 1e-4 / 5 * total) ** 0.75


class Weights:
    """Random layers that keep activations at one scale. Large ones repeat a short noise."""

    def __init__(self, seed: int = 0) -> None:
        self.random = np.random.default_rng(seed)
        self.noise = self.random.standard_normal(1_000_003).astype(np.float32)

    def conv(self, outputs: int, inputs: int, kernel: int) -> list[np.ndarray]:
        shape = outputs, inputs, kernel, kernel
        weight = np.roll(self.noise, self.random.integers(10**6))
        weight = np.resize(weight * np.float32((2 / (inputs * kernel**2)) ** 0.5), shape)
        return [weight, self.random.normal(size=outputs, scale=0.1).astype(np.float32)]

    def vgg(self, in_channels: int = 3, first: str = "conv1_1") -> dict[str, list[np.ndarray]]:
        layers, inputs = {}, in_channels
        for block, count in BLOCKS.items():
            for number in range(1, count + 1):
                name = first if (block, number) == (1, 1) else f"conv{block}_{number}"
                layers[name] = self.conv(WIDTHS[block], inputs, 3)
                inputs = WIDTHS[block]
        return layers | {"fc6": self.conv(4096, 512, 7), "fc7": self.conv(4096, 4096, 1)}

    def heads(self, classes: int, stride: int, head: str = "") -> dict[str, list[np.ndarray]]:
        """Score and upsampling layers of an FCN on VGG16."""
        layers = {f"score_fr{head}": self.conv(classes, 4096, 1)}
        if stride == 32:
            return layers | {f"upscore{head}": [bilinear(classes, 64)]}
        layers |= {
            f"upscore2{head}": [bilinear(classes, 4)],
            f"score_pool4{head}": self.conv(classes, 512, 1),
        }
        if stride == 16:
            return layers | {f"upscore16{head}": [bilinear(classes, 32)]}
        return layers | {
            f"upscore_pool4{head}": [bilinear(classes, 4)],
            f"score_pool3{head}": self.conv(classes, 256, 1),
            f"upscore8{head}": [bilinear(classes, 16)],
        }

    def alexnet(self, classes: int = 21) -> dict[str, list[np.ndarray]]:
        return {
            "conv1": self.conv(96, 3, 11),
            "conv2": self.conv(256, 48, 5),
            "conv3": self.conv(384, 256, 3),
            "conv4": self.conv(384, 192, 3),
            "conv5": self.conv(256, 192, 3),
            "fc6": self.conv(4096, 256, 6),
            "fc7": self.conv(4096, 4096, 1),
            "score_fr": self.conv(classes, 4096, 1),
            "upscore": [bilinear(classes, 63)],
        }
