from pathlib import Path

import numpy as np
import pytest
import torch

import fcn
from fcn.errors import DeviceError
from fcn.images import decode_image
from fcn.input import TORCHVISION
from fcn.predict import Predictor
from tests.fcn.models import two_headed_model, varied_model
from tests.fcn.scenes import CLASSES

SIZES = [(40, 50), (1, 1), (33, 65), (40, 50), (97, 31)]


def model(backbone: str = "resnet18", num_classes: int = 2, stride: int = 8) -> fcn.Model:
    torch.manual_seed(1)
    net = fcn.FCN(backbone, num_classes, stride)
    for fuse in [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]:
        torch.nn.init.normal_(fuse.weight)  # type: ignore[arg-type]
    classes = CLASSES if num_classes == 2 else named(num_classes)
    return fcn.Model(net, classes, TORCHVISION)


def named(num_classes: int) -> fcn.Classes:
    return fcn.Classes.named(map(str, range(num_classes)), 255 if num_classes < 256 else 65535)


def images(rng: np.random.Generator) -> list[np.ndarray]:
    return [rng.integers(0, 256, (*size, 3), np.uint8) for size in SIZES]


def test_every_image_gets_a_label_map_of_its_size_in_order(rng: np.random.Generator) -> None:
    found = Predictor(model())(images(rng))
    assert [label.shape for label in found] == SIZES
    assert all(label.dtype == np.uint8 and label.max() < 2 for label in found)


def test_a_label_map_does_not_depend_on_its_neighbours(rng: np.random.Generator) -> None:
    predictor = Predictor(model())
    batch = images(rng)
    together = predictor.predict(batch)
    for image, prediction in zip(batch, together, strict=True):
        (alone,) = predictor.predict([image])
        assert np.array_equal(alone.label, prediction.label)
        assert alone.confidence == prediction.confidence


@pytest.mark.parametrize("backbone", ["resnet18", "squeezenet1_1"])
@pytest.mark.parametrize("size", [(97, 131), (24, 30), (1, 1)])
def test_labels_and_confidence_are_those_of_the_scores(
    backbone: str, size: tuple[int, int], rng: np.random.Generator
) -> None:
    trained = varied_model(backbone)
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    (found,) = Predictor(trained).predict([image])
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        share = trained.net(TORCHVISION.normalise(pixels)).softmax(dim=1)
    assert np.array_equal(found.label, share.argmax(dim=1)[0])
    assert found.confidence == pytest.approx(float(share.max(dim=1).values.mean()), abs=1e-5)


@pytest.mark.parametrize(("backbone", "stride"), [("squeezenet1_1", 8), ("resnet18", 16)])
def test_tiles_give_the_labels_of_the_whole(
    backbone: str, stride: int, rng: np.random.Generator
) -> None:
    trained = model(backbone, 5, stride)
    image = rng.integers(0, 256, (700, 830, 3), np.uint8)
    tied = ties(trained, image)
    assert tied.mean() < 0.001
    (whole,) = Predictor(trained).predict([image])
    (tiled,) = Predictor(trained, tile_size=200).predict([image])
    assert np.array_equal(whole.label[~tied], tiled.label[~tied])
    assert tiled.confidence == pytest.approx(whole.confidence, abs=1e-5)


@torch.no_grad()
def ties(trained: fcn.Model, image: np.ndarray) -> np.ndarray:
    """Pixels whose two best scores differ by no more than rounding does between shapes."""
    pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
    scores = trained.net.eval()(trained.input.normalise(pixels))[0]
    first, second = scores.topk(2, dim=0).values
    return (first - second < 1e-5 * scores.abs().max()).numpy()


def test_large_images_are_tiled_without_being_asked(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (1700, 2400, 3), np.uint8)
    predictor = Predictor(model("squeezenet1_1"))
    seen = []
    predictor.net.trunk.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[2:]))
    (label,) = predictor([image])
    assert label.shape == (1700, 2400)
    assert len(seen) == 6
    assert max(max(size) for size in seen) < 1024 + 2 * 256


def test_many_classes_make_an_image_large(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (600, 700, 3), np.uint8)
    predictor = Predictor(model("squeezenet1_1", 300))
    assert predictor._tile(*image.shape[:2]) == 1024
    assert Predictor(model("squeezenet1_1", 3))._tile(*image.shape[:2]) is None


def test_long_images_are_tiled_however_few_their_pixels(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (3, 9000, 3), np.uint8)
    predictor = Predictor(model("squeezenet1_1"))
    widths = []
    predictor.net.trunk.register_forward_pre_hook(lambda _, args: widths.append(args[0].shape[3]))
    (label,) = predictor([image])
    assert label.shape == (3, 9000)
    assert len(widths) == 9
    assert max(widths) < 1024 + 2 * 256


def test_a_network_that_sees_everything_is_never_cut(rng: np.random.Generator) -> None:
    image = rng.integers(0, 256, (200, 300, 3), np.uint8)
    trained = model("mobilenet_v3_large")
    whole, tiled = Predictor(trained), Predictor(trained, tile_size=96)
    assert np.array_equal(whole([image])[0], tiled([image])[0])


def test_real_photographs_tile_exactly(camvid_dir: Path) -> None:
    paths = sorted((camvid_dir / "val").iterdir())[::25]
    photographs = [decode_image(path.read_bytes()).pixels for path in paths]
    trained = model("squeezenet1_1", 11)
    whole, tiled = Predictor(trained), Predictor(trained, tile_size=128)
    for one, other in zip(whole(photographs), tiled(photographs), strict=True):
        assert np.array_equal(one, other)


def test_twenty_photographs_of_many_sizes_tile_exactly(coco_dir: Path) -> None:
    paths = sorted((coco_dir / "JPEGImages").iterdir())[::6][:20]
    photographs = [decode_image(path.read_bytes()).pixels for path in paths]
    assert len({image.shape for image in photographs}) > 5
    trained = model("squeezenet1_1", 21)
    whole, tiled = Predictor(trained), Predictor(trained, tile_size=128)
    different = 0
    for image, one, other in zip(photographs, whole(photographs), tiled(photographs), strict=True):
        assert len(np.unique(one)) > 1
        if not np.array_equal(one, other):  # convolutions of other shapes round otherwise
            assert ties(trained, image)[one != other].all()
            different += (one != other).sum()
    assert different < 10  # of five million pixels


def test_more_than_256_classes_need_two_bytes(rng: np.random.Generator) -> None:
    (label,) = Predictor(model("squeezenet1_1", 300))(images(rng)[:1])
    assert label.dtype == np.uint16
    assert label.max() > 255


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 4)])
def test_other_arrays_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="uint8 H x W x 3, found uint8"):
        Predictor(model())([np.zeros(shape, np.uint8)])


@pytest.mark.parametrize("device", ["cuda:77", "abacus"])
def test_a_device_that_is_not_there_is_named(device: str) -> None:
    with pytest.raises(DeviceError, match=f"device '{device}' cannot be used here"):
        Predictor(model(), device=device)


def test_models_of_other_images_are_refused() -> None:
    net = fcn.FCN("squeezenet1_1", 2, in_channels=4)
    with pytest.raises(ValueError, match=r"4 channels.*call model.net on tensors"):
        Predictor(fcn.Model(net, CLASSES, TORCHVISION))


@pytest.mark.parametrize("size", [(97, 131), (24, 30), (1, 1)])
def test_every_head_has_labels_and_confidence_of_its_own(
    size: tuple[int, int], rng: np.random.Generator
) -> None:
    trained = two_headed_model()
    image = rng.integers(0, 256, (*size, 3), np.uint8)
    predictor = Predictor(trained)
    (found,) = predictor.predict([image])
    with torch.no_grad():
        pixels = torch.from_numpy(image).permute(2, 0, 1)[None]
        scores = trained.net.split(trained.net(trained.input.normalise(pixels)))
    for head, prediction in {"sem": found, **found.further}.items():
        best = scores[head][0].softmax(dim=0).max(dim=0)
        assert np.array_equal(prediction.label, best.indices.numpy())
        assert prediction.confidence == pytest.approx(float(best.values.mean()), abs=1e-5)
    assert list(found.further) == ["geo"]
    (label,) = predictor([image])  # the first head's
    assert np.array_equal(label, found.label)


def test_tiles_of_every_head_are_those_of_the_whole_image(rng: np.random.Generator) -> None:
    trained = two_headed_model()
    image = rng.integers(0, 256, (300, 333, 3), np.uint8)
    (whole,) = Predictor(trained).predict([image])
    (tiled,) = Predictor(trained, tile_size=64).predict([image])
    for one, other in ((whole, tiled), (whole.further["geo"], tiled.further["geo"])):
        assert (one.label != other.label).mean() < 1e-3  # where two scores are all but equal
        assert one.confidence == pytest.approx(other.confidence, abs=1e-5)


def test_a_head_of_few_classes_has_bytes_beside_one_of_many(rng: np.random.Generator) -> None:
    net = fcn.FCN("squeezenet1_1", 302, 16, heads={"many": 300, "few": 2})
    few = fcn.Classes.named("ab", ignore_index=65535)
    trained = fcn.Model(net, named(300), TORCHVISION, further_classes={"few": few})
    (found,) = Predictor(trained).predict([rng.integers(0, 256, (20, 30, 3), np.uint8)])
    assert (found.label.dtype, found.further["few"].label.dtype) == (np.uint16, np.uint8)


@pytest.mark.parametrize("learnable_upsampling", [False, True])
def test_half_precision_gives_nearly_the_same_labels(
    learnable_upsampling: bool, rng: np.random.Generator
) -> None:
    trained = varied_model("squeezenet1_1")
    net = fcn.FCN("squeezenet1_1", 5, learnable_upsampling=learnable_upsampling)
    net.load_state_dict(trained.net.state_dict(), strict=False)
    whole = fcn.Model(net, trained.classes, trained.input)
    image = rng.integers(0, 256, (64, 80, 3), np.uint8)
    (exact,) = Predictor(whole)([image])
    (half,) = Predictor(whole, precision="bf16")([image])
    assert len(np.unique(exact)) > 1
    assert (half == exact).mean() > 0.95
