"""A network learns from a band what its colours do not show."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from PIL import Image

import fcn
from fcn.augment import Augment
from fcn.bands import Band
from fcn.errors import BandError, MissingBand
from fcn.evaluate import score_samples
from fcn.input import TORCHVISION
from fcn.masks import encode_mask
from fcn.metrics import Scores
from fcn.recipes import TrainConfig
from fcn.samples import TrainingSamples
from fcn.train import Trainer
from fcn.weights import Transplant

CLASSES = fcn.Classes.named(["near", "far"])
DEPTH = Band("depth", "float32", 5.0, 3.0)
CONFIG = TrainConfig(
    backbone="squeezenet1_1", stride=8, init="none", epochs=12, batch_size=4, crop_size=(48, 48),
    num_workers=0, learning_rate=2e-3, device="cpu",
)  # fmt: skip


@dataclass(frozen=True)
class Scene:
    """A gray image of noise, of which only the depth shows where the near part ends."""

    key: str
    image: bytes
    label: bytes
    bands: dict[str, bytes | None]


def png(values: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind)
    return file.getvalue()


def scenes(count: int, seed: int = 0, size: int = 48) -> list[Scene]:
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        far = np.zeros((size, size), bool)
        top, left = rng.integers(0, size // 2, 2)
        far[top : top + size // 2, left : left + size // 2] = True
        if rng.random() < 0.5:  # or the place would tell something
            far = ~far
        depth = (np.where(far, 8, 2) + rng.normal(0, 0.3, far.shape)).astype(np.float32)
        depth[rng.random(far.shape) < 0.02] = np.nan  # no echo
        image = rng.integers(0, 256, (size, size, 3), np.uint8)
        found.append(
            Scene(
                f"{index:02d}",
                png(image),
                encode_mask(far.astype(np.uint8)),
                {"depth": png(depth, "TIFF")},
            )
        )
    return found


def trainer(samples: Sequence[Scene], *bands: Band, config: TrainConfig = CONFIG) -> Trainer:
    torch.manual_seed(0)
    net = fcn.FCN(config.backbone, 2, config.stride, in_channels=3 + len(bands))
    spec = replace(TORCHVISION, bands=bands)
    return Trainer(
        fcn.Model(net, CLASSES, spec), samples, config,
        class_pixels=[1, 1], transplant=Transplant(input=spec),
    )  # fmt: skip


def mean_iu(training: Trainer) -> float:
    for _ in training.run():
        pass
    total = np.zeros((2, 2), np.int64)
    predictor = fcn.Predictor(training.model, device="cpu")
    for scored in score_samples(predictor, scenes(8, seed=1)):
        assert (scored.image.shape, scored.image.dtype) == ((48, 48, 3), np.uint8)
        total += scored.confusion
    return Scores(total).mean_iu


def test_only_the_band_tells_the_classes_apart() -> None:
    without, with_band = (mean_iu(trainer(scenes(16), *bands)) for bands in ((), (DEPTH,)))
    assert with_band > 0.8
    assert without < 0.5


def test_a_training_with_bands_goes_on_as_if_it_had_not_stopped() -> None:
    config = CONFIG.model_copy(update={"epochs": 1})
    whole, first = (trainer(scenes(8), DEPTH, config=config) for _ in range(2))
    for _ in whole.run():
        pass
    next(first.run())
    state = first.state()
    torch.manual_seed(1)
    spec = first.model.input
    net = fcn.FCN(config.backbone, 2, config.stride, in_channels=4)
    arguments = {"class_pixels": [1, 1], "transplant": Transplant(input=spec), "state": state}
    second = Trainer(fcn.Model(net, CLASSES, spec), scenes(8), config, **arguments)
    for _ in second.run():
        pass
    ours, theirs = whole.net.state_dict(), second.net.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    moved = replace(spec, bands=(replace(DEPTH, mean=6.0),))
    with pytest.raises(fcn.errors.CheckpointError):
        Trainer(fcn.Model(net, CLASSES, moved), scenes(8), config, **arguments)


def picture() -> tuple[torch.Tensor, torch.Tensor]:
    """Two bands: the second says where each pixel was."""
    rng = np.random.default_rng(3)
    image = torch.from_numpy(rng.integers(0, 256, (3, 20, 30), np.uint8))
    first = torch.from_numpy(rng.normal(1000, 50, (20, 30)).astype(np.float32))
    places = torch.arange(600.0).view(20, 30)
    return torch.cat([image.float(), first[None], places[None]]), places.long() % 7


def test_colours_are_varied_as_without_bands_and_bands_are_left_alone() -> None:
    pixels, label = picture()
    augment = Augment(None, 255, vary=True)
    for seed in range(4):
        found, _ = augment(pixels, label, torch.Generator().manual_seed(seed))
        plain, moved = augment(pixels[:3].byte(), label, torch.Generator().manual_seed(seed))
        assert torch.equal(found[:3], plain.float())
        flipped = not torch.equal(moved, label)
        assert torch.equal(found[3:], pixels[3:].flip(-1) if flipped else pixels[3:])


@pytest.mark.parametrize("vary", [False, True])
def test_crops_move_bands_with_their_image(vary) -> None:
    pixels, label = picture()
    augment = Augment((16, 16), 255, vary=vary)
    for seed in range(6):
        found, cut = augment(pixels, label, torch.Generator().manual_seed(seed))
        plain, same = augment(pixels[:3].byte(), label, torch.Generator().manual_seed(seed))
        assert torch.equal(found[:3], plain.float())
        assert torch.equal(cut, same)
        if not vary:
            assert torch.equal(found[4].long() % 7, cut)


def test_pixels_beside_a_small_image_are_unknown_in_its_bands() -> None:
    pixels, label = picture()
    found, _ = Augment((32, 40), 255, vary=False)(pixels, label, torch.Generator())
    assert found[:, :20, :30].equal(pixels)
    assert (found[:3, 20:] == 0).all()
    assert found[3:, 20:].isnan().all()
    assert found[3:, :, 30:].isnan().all()
    samples = TrainingSamples([], CONFIG, CLASSES, bands=(DEPTH, DEPTH))
    images, _ = samples.collate([(pixels, label), (found, found[0].long())])
    assert images[0, 3:, 20:].isnan().all()


@pytest.mark.parametrize(
    ("bands", "error", "message"),
    [
        ({}, MissingBand, "training sample 00: the image has no band depth"),
        ({"depth": b"no"}, BandError, "training sample 00: band depth: no decoder knows"),
    ],
)
def test_a_sample_without_its_band_is_named(bands, error, message) -> None:
    samples = [replace(scene, bands=bands) for scene in scenes(1)]
    with pytest.raises(error, match=message):
        next(trainer(samples, DEPTH).run())
