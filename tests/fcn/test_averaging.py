"""Averaged views: nothing moves, and nothing changes where views agree."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fcn
from fcn.averaging import AveragedPredictor
from fcn.errors import DeviceError
from fcn.input import InputSpec
from fcn.predict import Predictor
from tests.fcn.models import two_headed_model, varied_model

PLAIN = InputSpec(channel_order="RGB", mean=(0, 0, 0), std=(1, 1, 1))


class Brightness(nn.Module):
    """Scores of each pixel by itself: class 1 where red is above 100."""

    in_channels, heads = 3, None

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([torch.full_like(image[:, :1], 100), image[:, :1]], dim=1)


def brightness() -> fcn.Model:
    net: Any = Brightness()
    return fcn.Model(net, fcn.Classes.named(["dark", "bright"]), PLAIN)


def mirrored(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image[:, ::-1])


def mirror_symmetric(trained: fcn.Model) -> fcn.Model:
    """The same network with kernels that are their own mirror images."""
    with torch.no_grad():
        for layer in trained.net.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.copy_((layer.weight + layer.weight.flip(3)) / 2)
    return trained


def test_one_look_is_the_predictor(rng: np.random.Generator) -> None:
    images = [rng.integers(0, 256, (*size, 3), np.uint8) for size in [(40, 50), (1, 1), (33, 65)]]
    trained = varied_model("resnet18")
    expected, found = Predictor(trained).predict(images), AveragedPredictor(trained).predict(images)
    for one, other in zip(expected, found, strict=True):
        assert np.array_equal(one.label, other.label)
        assert one.label.dtype == other.label.dtype
        assert one.confidence == pytest.approx(other.confidence, abs=1e-6)


def test_flipping_changes_nothing_for_a_network_that_does_not_see_it(
    rng: np.random.Generator,
) -> None:
    """Symmetric kernels, and a width at which cells mirror onto cells: 6 strides of 16, and 1."""
    symmetric = mirror_symmetric(varied_model("squeezenet1_1"))
    image = rng.integers(0, 256, (70, 97, 3), np.uint8)
    (plain,) = AveragedPredictor(symmetric).predict([image])
    (flipped,) = AveragedPredictor(symmetric, flip=True).predict([image])
    assert len(np.unique(plain.label)) > 1
    assert np.array_equal(plain.label, flipped.label)
    assert plain.confidence == pytest.approx(flipped.confidence, abs=1e-5)


def test_with_flips_the_mirror_image_has_the_mirrored_labels(rng: np.random.Generator) -> None:
    predictor = AveragedPredictor(varied_model("squeezenet1_1"), flip=True, scales=(0.75, 1.0))
    image = rng.integers(0, 256, (61, 90, 3), np.uint8)
    (label,), (other,) = predictor([image]), predictor([mirrored(image)])
    assert (label != mirrored(other)).mean() < 0.001  # ties in rounding
    (without,) = AveragedPredictor(varied_model("squeezenet1_1"))([image])
    assert (label != without).any()


@pytest.mark.parametrize("scale", [0.5, 0.7, 1.3, 2.0, 3.0])
@pytest.mark.parametrize("size", [(64, 96), (51, 73)])
def test_scaling_does_not_move_an_edge(scale: float, size: tuple[int, int]) -> None:
    """A ramp from dark to bright keeps its column of equality, and so does its mirror image."""
    height, width = size
    ramp = np.linspace(0, 200, width).round().astype(np.uint8)
    image = np.broadcast_to(ramp[None, :, None], (height, width, 3)).copy()
    for seen in (image, mirrored(image)):
        (label,) = AveragedPredictor(brightness(), scales=(scale,))([seen])
        margin = seen[..., 0].astype(int) - 100
        clear = abs(margin) > 1  # half a pixel's step
        assert np.array_equal(label[clear], (margin > 0)[clear])


def test_pixels_of_a_view_lie_where_they_belong_in_the_image() -> None:
    """A ramp of columns 0, 1, 2, … at half its size: 0.5, 2.5, 4.5, … but at the borders."""
    views = []

    class Watching(Brightness):
        def forward(self, image: Tensor) -> Tensor:
            views.append(image)
            return super().forward(image)

    net: Any = Watching()
    watching = fcn.Model(net, brightness().classes, PLAIN)
    ramp = np.broadcast_to(np.arange(40, dtype=np.uint8)[None, :, None], (24, 40, 3)).copy()
    AveragedPredictor(watching, scales=(0.5,))([ramp])
    (view,) = views
    assert view.shape == (1, 3, 12, 20)
    expected = (2 * torch.arange(20) + 0.5).expand(1, 3, 12, 20)
    torch.testing.assert_close(view[..., 1:-1], expected[..., 1:-1])


def test_probabilities_are_averaged_not_labels() -> None:
    """Two sure looks and an unsure one, as a network that doubts small views."""

    class Doubtful(Brightness):
        def forward(self, image: Tensor) -> Tensor:
            first = 10.0 if image.shape[3] == 20 else -1.0
            return torch.stack([torch.full_like(image[:, 0], first), 0 * image[:, 0]], dim=1)

    net: Any = Doubtful()
    doubtful = fcn.Model(net, fcn.Classes.named(["a", "b"]), PLAIN)
    image = np.zeros((10, 20, 3), np.uint8)
    (found,) = AveragedPredictor(doubtful, scales=(1.0, 0.5, 2.0)).predict([image])
    sure, unsure = torch.tensor([10.0, -1.0]).sigmoid().tolist()
    assert not found.label.any()
    assert found.confidence == pytest.approx((sure + 2 * unsure) / 3, abs=1e-6)


def test_images_of_one_pixel_can_be_halved() -> None:
    (label,) = AveragedPredictor(varied_model("resnet18"), scales=(0.25, 1.0))(
        [np.zeros((1, 1, 3), np.uint8)]
    )
    assert label.shape == (1, 1)


@pytest.mark.parametrize("scales", [(), (1.0, 0.0), (-1.0,)])
def test_scales_must_be_above_0(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales must be one or more numbers above 0"):
        AveragedPredictor(brightness(), scales=scales)


def test_models_of_other_images_are_refused() -> None:
    net = fcn.FCN("squeezenet1_1", 2, in_channels=4)
    with pytest.raises(ValueError, match="the model sees 4 channels"):
        AveragedPredictor(fcn.Model(net, fcn.Classes.named("ab"), PLAIN))


def test_one_look_is_the_predictors_in_every_head(rng: np.random.Generator) -> None:
    trained = two_headed_model()
    image = rng.integers(0, 256, (50, 61, 3), np.uint8)
    (once,) = AveragedPredictor(trained).predict([image])
    (plain,) = Predictor(trained).predict([image])
    for one, other in ((once, plain), (once.further["geo"], plain.further["geo"])):
        assert np.array_equal(one.label, other.label)
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_probabilities_are_averaged_within_each_head(rng: np.random.Generator) -> None:
    trained = two_headed_model()
    image = rng.integers(0, 256, (40, 48, 3), np.uint8)
    (found,) = AveragedPredictor(trained, flip=True).predict([image])
    with torch.no_grad():
        pixels = trained.input.normalise(torch.from_numpy(image).permute(2, 0, 1)[None])
        both = trained.net(pixels), trained.net(pixels.flip(3)).flip(3)
        geo = [trained.net.split(scores)["geo"][0].softmax(dim=0) for scores in both]
    best = ((geo[0] + geo[1]) / 2).max(dim=0)
    assert np.array_equal(found.further["geo"].label, best.indices.numpy())
    assert found.further["geo"].confidence == pytest.approx(float(best.values.mean()), abs=1e-5)


def test_what_is_no_image_or_device_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8 H x W x 3, found float64"):
        AveragedPredictor(brightness())([np.zeros((4, 5, 3))])
    with pytest.raises(DeviceError, match="'cuda:77' cannot be used here"):
        AveragedPredictor(brightness(), device="cuda:77")


def test_the_labels_are_of_the_models_classes() -> None:
    assert AveragedPredictor(brightness()).classes.names == ("dark", "bright")
