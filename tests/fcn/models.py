"""Untrained models whose labels nevertheless differ from pixel to pixel."""

import torch

import fcn
from fcn.input import TORCHVISION, InputSpec


def varied_model(
    backbone: str, num_classes: int = 5, stride: int = 8, spec: InputSpec = TORCHVISION
) -> fcn.Model:
    """A model with random scores, none of which is above the others everywhere."""
    torch.manual_seed(1)
    net = fcn.FCN(backbone, num_classes, stride, in_channels=spec.num_channels).eval()
    with torch.no_grad():
        for layer in [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]:
            torch.nn.init.normal_(layer.weight)  # type: ignore[arg-type]
        pixels = torch.randint(0, 256, (1, spec.num_channels, 97, 131), dtype=torch.uint8)
        scores = net(spec.normalise(pixels))
        assert net.score_fr.bias is not None
        net.score_fr.bias -= scores.mean(dim=(0, 2, 3))
    return fcn.Model(net, fcn.Classes.named(map(str, range(num_classes))), spec)


def two_headed_model(backbone: str = "squeezenet1_1", stride: int = 8) -> fcn.Model:
    """A `varied_model` whose five channels are three classes of one task and two of another."""
    one = varied_model(backbone, 5, stride)
    net = fcn.FCN(backbone, 5, stride, heads={"sem": 3, "geo": 2}).eval()
    net.load_state_dict(one.net.state_dict())
    geo = fcn.Classes.named(["0", "flat"])
    classes = fcn.Classes.named(["0", "1", "2"])
    return fcn.Model(net, classes, one.input, further_classes={"geo": geo})
