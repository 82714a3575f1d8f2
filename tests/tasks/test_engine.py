"""Every image ends as one row, in order: a mask, or the reason why there is none."""

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fcn
from fcn.input import TORCHVISION
from fcn.masks import decode_mask
from fcn.predict import check_finite
from tasks import engine, part_file, stores
from tasks.budget import least_budget
from tasks.cores import Cores
from tasks.engine import segment
from tasks.predict_config import PredictConfig
from tasks.seconds import Seconds
from tests.fcn.deadly import deadly, install
from tests.tasks.pictures import Brightness, encoded, pixels, put, rows_of


def test_masks_fit_their_images(tmp_path: Path, rng: np.random.Generator) -> None:
    sizes = [(12, 16), (1, 1), (16, 12), (12, 16), (40, 3)]
    images = {f"{index}.png": pixels(rng, *size) for index, size in enumerate(sizes)}
    put(str(tmp_path), {key: encoded(image) for key, image in images.items()})

    rows = rows_of(str(tmp_path))

    for key, image in images.items():
        expected = Brightness().predict([image])[0].label
        row = rows[key]
        assert row.mask is not None
        assert (decode_mask(row.mask) == expected).all()
        assert (row.status, row.height, row.width) == ("ok", *image.shape[:2])
        assert row.class_pixels == np.bincount(expected.ravel(), minlength=3).tolist()
        assert row.mask_path == f"{key}.png"


def test_real_network_segments_every_size(tmp_path: Path, rng: np.random.Generator) -> None:
    from fcn.input import TORCHVISION

    torch.manual_seed(0)
    net = fcn.FCN("squeezenet1_1", 3, 8)
    predictor = fcn.Predictor(fcn.Model(net, Brightness.classes, TORCHVISION), device="cpu")
    put(str(tmp_path), {"a.png": encoded(pixels(rng, 33, 47)), "b.png": encoded(pixels(rng, 9, 9))})

    rows = rows_of(str(tmp_path), predictor)

    assert [(row.height, row.width) for row in rows.values()] == [(33, 47), (9, 9)]
    assert all(row.confidence == pytest.approx(1 / 3) for row in rows.values())


def hostile(rng: np.random.Generator) -> dict[str, bytes]:
    good = encoded(pixels(rng, 64, 64), "JPEG")
    return {
        "bomb.png": encoded(np.zeros((1200, 1200, 3), np.uint8)),
        "cut.jpg": good[: len(good) // 2],
        "empty.jpg": b"",
        "good.jpg": good,
        "text.jpg": b"no image at all",
        "wrong.png": good,  # a JPEG by another name
    }


def test_bad_images_become_rows_with_reasons(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), hostile(rng))
    put(str(tmp_path), {"vanishes.png": encoded(pixels(rng))})
    entries = list(stores.list_entries(str(tmp_path)))
    (tmp_path / "vanishes.png").unlink()

    config = PredictConfig(max_image_pixels=1_000_000)
    rows = segment(entries, Brightness(), config, seconds=Seconds())

    assert {row.entry.key: (row.status, row.error_class) for row in rows} == {
        "bomb.png": ("failed", "ImageTooLarge"),
        "cut.jpg": ("failed", "TruncatedImage"),
        "empty.jpg": ("failed", "EmptyImage"),
        "good.jpg": ("ok", None),
        "text.jpg": ("failed", "UnsupportedImage"),
        "vanishes.png": ("failed", "ObjectVanished"),
        "wrong.png": ("ok", None),
    }
    assert all(row.error and row.mask is None for row in rows if row.status == "failed")


def test_lenient_run_segments_truncated_images(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), hostile(rng))
    row = rows_of(str(tmp_path), lenient=True)["cut.jpg"]
    assert (row.status, row.height, row.width) == ("partial", 64, 64)
    assert row.mask is not None


def test_neighbours_do_not_change_a_mask(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), {f"{i:02}.png": encoded(pixels(rng, 8 + i % 3)) for i in range(20)})
    together = rows_of(str(tmp_path))
    monkeypatch.setattr(engine, "WINDOW_BYTES", 1)
    monkeypatch.setattr(engine, "BATCH_PIXELS", 1)
    assert rows_of(str(tmp_path)) == together


def test_windows_are_bounded_in_bytes() -> None:
    sizes = [10 << 20, 20 << 20, 5 << 20, 100 << 20, 1, stores.UNKNOWN_SIZE, 31 << 20]
    entries = [stores.Entry(key=str(n), url=str(n), size=n, etag="") for n in sizes]
    windows = list(engine.windows(entries))
    assert [len(window) for window in windows] == [2, 1, 1, 2, 1]
    assert [entry for window in windows for entry in window] == entries
    assert list(engine.windows([])) == []


def test_seconds_and_progress_are_told(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng)) for index in range(5)})
    seconds, done = Seconds(), [0]
    segment(
        list(stores.list_entries(str(tmp_path))),
        Brightness(),
        PredictConfig(),
        seconds=seconds,
        advance=done.append,
    )
    assert sum(done) == 5
    assert all(seconds.by_stage[stage] > 0 for stage in ("read", "decode", "network", "encode"))


def test_decoder_that_dies_costs_one_image(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    good = {f"{index:02}.png": encoded(pixels(rng)) for index in range(20)}
    deaths = ("segfault", "abort", "swell", "header")
    put(str(tmp_path / "in"), good | {f"{death}.qoi": deadly(death) for death in deaths})
    engine.DECODERS.close()  # those that start now meet the deadly decoder
    try:
        rows = rows_of(str(tmp_path / "in"))
    finally:
        engine.DECODERS.close()

    failed = {key: row.error_class for key, row in rows.items() if row.status == "failed"}
    assert failed == {
        "segfault.qoi": "DecoderCrashed",
        "abort.qoi": "DecoderCrashed",
        "swell.qoi": "ImageTooLarge",
        "header.qoi": "DecoderCrashed",
    }
    assert {key for key, row in rows.items() if row.status == "ok"} == good.keys()


def test_decoders_that_cannot_start_are_no_fault_of_the_images(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import os; os._exit(3)", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    put(str(tmp_path / "in"), {"a.png": encoded(pixels(rng))})
    engine.DECODERS.close()
    with pytest.raises(RuntimeError, match="ended with status 3 before it was ready"):
        rows_of(str(tmp_path / "in"))
    engine.DECODERS.close()


def test_shards_that_fail_leave_the_budget_to_others(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    class Broken(Brightness):
        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            raise RuntimeError("broken")

    put(str(tmp_path), {f"{i}.png": encoded(pixels(rng, 4 + i)) for i in range(9)})
    limits = {"max_image_pixels": 1000, "max_image_bytes": 10_000}
    config = PredictConfig(memory_budget=least_budget(*limits.values()), **limits)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="broken"):
            segment(list(stores.list_entries(str(tmp_path))), Broken(), config, seconds=Seconds())
    rows = rows_of(str(tmp_path), **config.model_dump())
    assert {row.status for row in rows.values()} == {"ok"}


def test_an_image_without_finite_scores_fails_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    class Overflowing(Brightness):
        side_by_side = False  # as on a GPU: images of a size together

        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            found = super().predict(images)
            return check_finite(
                [
                    replace(one, confidence=math.nan) if image[0, 0, 0] == 255 else one
                    for one, image in zip(found, images, strict=True)
                ]
            )

    images = [pixels(rng, 8, 8) for _ in range(3)]
    for image, corner in zip(images, (0, 255, 0), strict=True):
        image[0, 0, 0] = corner
    put(str(tmp_path), {f"{i}.png": encoded(image) for i, image in enumerate(images)})
    entries = list(stores.list_entries(str(tmp_path)))
    rows = segment(entries, Overflowing(), PredictConfig(), seconds=Seconds())
    assert [row.status for row in rows] == ["ok", "failed", "ok"]
    assert rows[1].error_class == "ScoresNotFinite"


def model_rows(prefix: str, *, cores: int = 1, **settings: Any) -> bytes:
    """The part of everything below a prefix by a small network, in shards of so many images."""
    torch.manual_seed(0)
    net = fcn.FCN("squeezenet1_1", 3, 8)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():
            torch.nn.init.normal_(layer.weight, std=0.1)
    config = PredictConfig(device="cpu", **settings)
    predictor = fcn.Predictor(
        fcn.Model(net, Brightness.classes, TORCHVISION),
        device="cpu",
        batch_size=config.batch_size,
        tile_size=config.tile_size,
    )
    entries = list(stores.list_entries(prefix))
    size = config.images_per_shard
    shards = [entries[start : start + size] for start in range(0, len(entries), size)]
    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(config.concurrency) as pool:
        patch.setattr(engine, "CORES", Cores(cores))
        found = pool.map(lambda shard: segment(shard, predictor, config, seconds=Seconds()), shards)
        rows = [row for shard in found for row in shard]
    part = part_file.summarise(rows, run=0, number=0, run_digest="")
    return part_file.encode(rows, part, config.mask_format)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch_size": 4},
        {"images_per_shard": 3},
        {"images_per_shard": 4, "concurrency": 3},
        {"cores": 3},
        {"cores": 2, "images_per_shard": 2},
    ],
)
def test_a_row_depends_on_its_image_alone(
    settings: dict[str, Any], tmp_path: Path, rng: np.random.Generator
) -> None:
    sizes = [(40, 56), (40, 56), (33, 47), (40, 56), (40, 56), (9, 9), (40, 56), (33, 47), (40, 56)]
    put(str(tmp_path), {f"{i}.png": encoded(pixels(rng, *size)) for i, size in enumerate(sizes)})
    put(str(tmp_path), {"4a.png": b"damaged"})
    assert model_rows(str(tmp_path), **settings) == model_rows(str(tmp_path))
