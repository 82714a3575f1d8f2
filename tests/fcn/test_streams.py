from typing import Literal

import numpy as np
import pytest
import torch

import fcn
from fcn.device import Precision
from fcn.input import CAFFE, TORCHVISION, InputSpec
from fcn.predict import Predictor
from fcn.streams import Labeller, on_gpu
from tests.fcn.models import varied_model

CPU = torch.device("cpu")


def labeller(
    net: fcn.FCN, precision: Precision = "fp32", spec: InputSpec = TORCHVISION
) -> Labeller:
    sizes = [net.num_classes] if net.heads is None else list(net.heads.values())
    return Labeller(on_gpu(net, CPU, precision), spec, sizes)


def batch(rng: np.random.Generator, *size: int) -> np.ndarray:
    return rng.integers(0, 256, (2, *size, 3), np.uint8)


@pytest.mark.parametrize("size", [(1, 1), (33, 65), (97, 131)])
@pytest.mark.parametrize("spec", [TORCHVISION, CAFFE])
@torch.inference_mode()
def test_labels_and_confidence_are_the_predictors(
    size: tuple[int, int], spec: InputSpec, rng: np.random.Generator
) -> None:
    trained = varied_model("squeezenet1_1")
    trained.input = spec
    images = batch(rng, *size)
    window = 0, 0, *size
    labels, sums = labeller(trained.net, spec=spec)(torch.from_numpy(images), window)
    for index, expected in enumerate(Predictor(trained).predict(list(images))):
        assert (labels[index].numpy() != expected.label).mean() < 0.001  # ties
        assert float(sums[0, index]) / labels[index].numel() == pytest.approx(
            expected.confidence, abs=1e-5
        )


@torch.inference_mode()
def test_a_window_is_cut_out_of_the_whole(rng: np.random.Generator) -> None:
    label = labeller(varied_model("squeezenet1_1").net)
    images = torch.from_numpy(batch(rng, 90, 110))
    whole, _ = label(images, (0, 0, 90, 110))
    part, _ = label(images, (7, 13, 70, 41))
    assert (whole[:, 7:77, 13:54] != part).float().mean() < 0.001


@torch.inference_mode()
def test_heads_have_labels_of_their_own(rng: np.random.Generator) -> None:
    net = fcn.FCN("squeezenet1_1", 305, heads={"things": 300, "places": 5})
    torch.nn.init.normal_(net.score_fr.weight)
    things, places, sums = labeller(net.eval())(
        torch.from_numpy(batch(rng, 20, 30)), (0, 0, 20, 30)
    )
    assert (things.dtype, places.dtype) == (torch.uint16, torch.uint8)
    assert things.shape == places.shape == (2, 20, 30)
    assert places.max() < 5 <= things.int().max()
    assert sums.shape == (2, 2)


@pytest.mark.parametrize("backbone", ["squeezenet1_1", "resnet18"])
@torch.inference_mode()
def test_converted_weights_give_what_autocast_gives(
    backbone: str, rng: np.random.Generator
) -> None:
    net = varied_model(backbone).net.eval()
    converted = labeller(net, "bf16")
    pixels = torch.from_numpy(batch(rng, 60, 70))
    with torch.autocast("cpu", torch.bfloat16):
        expected = net.score(TORCHVISION.normalise(pixels.permute(0, 3, 1, 2)))
    found = converted.score(pixels)
    assert found.dtype == torch.bfloat16
    scale = expected.float().abs().max()
    assert float((found.float() - expected.float()).abs().max() / scale) < 0.03
    assert {p.dtype for p in net.parameters()} == {torch.float32}  # the network stays as it is


@torch.inference_mode()
def test_learnable_kernels_keep_their_one_way(rng: np.random.Generator) -> None:
    net = fcn.FCN("squeezenet1_1", 4, learnable_upsampling=True).eval()
    torch.nn.init.normal_(net.score_fr.weight)
    assert net.upscore.weight is not None
    torch.nn.init.uniform_(net.upscore.weight)
    pixels = torch.from_numpy(batch(rng, 40, 50))
    labels, _ = labeller(net)(pixels, (0, 0, 40, 50))
    expected = net(TORCHVISION.normalise(pixels.permute(0, 3, 1, 2))).argmax(dim=1)
    assert (labels != expected).float().mean() < 0.001


Way = Literal["whole", "tiles"]


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["whole", "tiles"])
def test_a_gpu_says_what_a_cpu_says(way: Way, rng: np.random.Generator) -> None:
    """Eager and from graphs: the sizes come often enough to be recorded."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    trained = varied_model("squeezenet1_1")
    images = [*batch(rng, 120, 90), *batch(rng, 33, 65), *batch(rng, 1, 1)] * 12
    tile_size = 64 if way == "tiles" else None
    expected = Predictor(trained, device="cpu", tile_size=tile_size).predict(images)
    gpu = Predictor(trained, device="cuda", precision="fp32", batch_size=3, tile_size=tile_size)
    for one, other in zip(gpu.predict(images), expected, strict=True):
        assert (one.label != other.label).mean() < 0.01
        assert one.confidence == pytest.approx(other.confidence, abs=1e-2)
