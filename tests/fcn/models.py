"""Untrained models whose labels nevertheless differ from pixel to pixel."""

import torch

import fcn
from fcn.input import TORCHVISION, InputSpec


def varied_model(
    backbone: str, num_classes: int = 5, stride: int = 8, spec: InputSpec = TORCHVISION
) -> fcn.Model:
    """A model with random scores, none of which is above the others everywhere."""
    torch.manual_seed(1)
    net = fcn.FCN(backbone, num_classes, stride).eval()
    with torch.no_grad():
        for layer in [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]:
            torch.nn.init.normal_(layer.weight)  # type: ignore[arg-type]
        pixels = torch.randint(0, 256, (1, 3, 97, 131), dtype=torch.uint8)
        scores = net(spec.normalise(pixels))
        assert net.score_fr.bias is not None
        net.score_fr.bias -= scores.mean(dim=(0, 2, 3))
    return fcn.Model(net, fcn.Classes.named(map(str, range(num_classes))), spec)
