"""Every image ends as one row, in order: a mask, or the reason why there is none."""

import errno
import io
import math
import os
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fcn
from fcn.input import TORCHVISION
from fcn.masks import decode_mask
from fcn.predict import check_finite
from tasks import engine, part_file, stores
from tasks.budget import least_budget
from tasks.cores import Cores
from tasks.engine import Seconds, segment
from tasks.part_file import Row
from tasks.predict_config import PredictConfig
from tasks.shards import mask_saver
from tasks.stores import StoreError, StoreUnavailable
from tests.fcn.deadly import deadly, install
from tests.tasks.pictures import Brightness, encoded, pixels, put


def run(prefix: str, predictor: Any = None, **settings: Any) -> dict[str, Row]:
    """The rows of everything below a prefix, by key."""
    entries = list(stores.list_entries(prefix))
    rows = segment(entries, predictor or Brightness(), PredictConfig(**settings), seconds=Seconds())
    assert [row.entry for row in rows] == entries
    return {row.entry.key: row for row in rows}


def test_masks_fit_their_images(tmp_path: Path, rng: np.random.Generator) -> None:
    sizes = [(12, 16), (1, 1), (16, 12), (12, 16), (40, 3)]
    images = {f"{index}.png": pixels(rng, *size) for index, size in enumerate(sizes)}
    put(str(tmp_path), {key: encoded(image) for key, image in images.items()})

    rows = run(str(tmp_path))

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

    rows = run(str(tmp_path), predictor)

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
    row = run(str(tmp_path), lenient=True)["cut.jpg"]
    assert (row.status, row.height, row.width) == ("partial", 64, 64)
    assert row.mask is not None


def test_neighbours_do_not_change_a_mask(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), {f"{i:02}.png": encoded(pixels(rng, 8 + i % 3)) for i in range(20)})
    together = run(str(tmp_path))
    monkeypatch.setattr(engine, "WINDOW_BYTES", 1)
    monkeypatch.setattr(engine, "BATCH_PIXELS", 1)
    assert run(str(tmp_path)) == together


def test_windows_are_bounded_in_bytes() -> None:
    sizes = [10 << 20, 20 << 20, 5 << 20, 100 << 20, 1, stores.UNKNOWN_SIZE, 31 << 20]
    entries = [stores.Entry(key=str(n), url=str(n), size=n, etag="") for n in sizes]
    windows = list(engine.windows(entries))
    assert [len(window) for window in windows] == [2, 1, 1, 2, 1]
    assert [entry for window in windows for entry in window] == entries
    assert list(engine.windows([])) == []


class Memory(Brightness):
    """A GPU with memory for so many pixels at once; notes how many it was given."""

    side_by_side = False

    def __init__(self, num_pixels: int) -> None:
        self.num_pixels = num_pixels
        self.most = 0

    def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
        given = sum(image.shape[0] * image.shape[1] for image in images)
        self.most = max(self.most, given)
        if given > self.num_pixels:
            raise torch.OutOfMemoryError("out of memory")
        return super().predict(images)


def test_batches_are_bounded_in_pixels(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng, 10, 10)) for index in range(9)})
    monkeypatch.setattr(engine, "BATCH_PIXELS", 450)
    predictor = Memory(1000)
    run(str(tmp_path), predictor)
    assert predictor.most == 400


def test_image_too_large_for_the_device_fails_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng, 10, 10)) for index in range(3)})
    put(str(tmp_path), {"large.png": encoded(pixels(rng, 50, 50))})
    rows = run(str(tmp_path), Memory(100))
    assert [row.status for row in rows.values()] == ["ok", "ok", "ok", "failed"]
    assert rows["large.png"].error_class == "OutOfMemoryError"
    assert (rows["large.png"].height, rows["large.png"].width) == (50, 50)


def test_broken_network_is_no_fault_of_the_images(tmp_path: Path, rng: np.random.Generator) -> None:
    class Broken(Brightness):
        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            raise RuntimeError("CUDA error: device-side assert triggered")

    put(str(tmp_path), {"a.png": encoded(pixels(rng))})
    with pytest.raises(RuntimeError, match="CUDA error"):
        run(str(tmp_path), Broken())


def test_png_sink_gets_every_mask(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), {"a.png": encoded(pixels(rng)), "b/c.png": encoded(pixels(rng))})
    saved: dict[str, bytes] = {}

    def save(key: str, png: bytes) -> str:
        saved[key] = png
        return f"memory://masks/{key}.png"

    entries = list(stores.list_entries(str(tmp_path)))
    config = PredictConfig(sinks=("png",))
    rows = segment(entries, Brightness(), config, seconds=Seconds(), save_mask=save)

    assert all(row.mask is None for row in rows)
    assert [row.mask_path for row in rows] == [
        "memory://masks/a.png.png",
        "memory://masks/b/c.png.png",
    ]
    with Image.open(io.BytesIO(saved["b/c.png"])) as image:
        assert image.mode == "P"


def test_mask_that_cannot_be_saved_fails_its_image_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    long = f"{'x' * 248}.png"  # a name may have 255 bytes, and the mask's has four more
    put(str(tmp_path / "in"), {key: encoded(pixels(rng)) for key in (long, "a", "a.png/b", "c")})
    entries = list(stores.list_entries(str(tmp_path / "in")))
    config, save = PredictConfig(sinks=("parquet", "png")), mask_saver(str(tmp_path / "out"))

    rows = segment(entries, Brightness(), config, seconds=Seconds(), save_mask=save)

    failed = {row.entry.key: row for row in rows if row.status == "failed"}
    assert len(failed) == 2
    assert failed.keys() - {"a", "a.png/b"} == {long}  # of the other two either may be first
    assert {row.error_class for row in failed.values()} == {"MaskNotSaved"}
    assert "name too long" in str(failed[long].error)
    assert (failed[long].height, failed[long].mask) == (12, None)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_full_disk_or_failing_store_is_no_fault_of_the_images(
    number: int, tmp_path: Path, rng: np.random.Generator
) -> None:
    put(str(tmp_path), {"a.png": encoded(pixels(rng))})
    error = StoreUnavailable("out") if number == errno.EIO else StoreError("full")
    error.__cause__ = OSError(number, os.strerror(number))

    def save(key: str, png: bytes) -> str:
        raise error

    entries = list(stores.list_entries(str(tmp_path)))
    with pytest.raises(StoreError) as caught:
        segment(entries, Brightness(), PredictConfig(), seconds=Seconds(), save_mask=save)
    assert caught.value is error


def test_run_lengths_beside_png_objects(tmp_path: Path, rng: np.random.Generator) -> None:
    put(str(tmp_path), {"a.png": encoded(pixels(rng))})
    saved: dict[str, bytes] = {}
    config = PredictConfig(sinks=("parquet", "png"), mask_format="rle")
    [row] = segment(
        list(stores.list_entries(str(tmp_path))),
        Brightness(),
        config,
        seconds=Seconds(),
        save_mask=lambda key, png: saved.setdefault(key, png) and "",
    )
    assert row.mask is not None
    assert row.mask.startswith(b"FCNR")
    assert (decode_mask(row.mask) == decode_mask(saved["a.png"])).all()


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


def test_seconds_are_told_by_image(tmp_path: Path, rng: np.random.Generator) -> None:
    """Also where a batch does not fit into memory, and of an image that fails."""

    class Slow(Memory):
        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            time.sleep(0.3 if images[0].shape[0] == 20 else 0)
            return super().predict(images)

    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng, 10, 10)) for index in range(3)})
    put(str(tmp_path), {f"slow{index}.png": encoded(pixels(rng, 20, 10)) for index in range(2)})
    put(str(tmp_path), {"text.jpg": b"no image at all"})
    seconds = Seconds()
    entries = list(stores.list_entries(str(tmp_path)))
    segment(entries, Slow(200), PredictConfig(), seconds=seconds)

    assert seconds.by_image.keys() == {entry.key for entry in entries}
    told = seconds.by_stage["decode"] + seconds.by_stage["network"]
    assert sum(seconds.by_image.values()) == pytest.approx(told)
    # half of the batch of both, and all of its own
    assert min(seconds.by_image[f"slow{index}.png"] for index in range(2)) > 0.15 + 0.3


class Cpu(Brightness):
    """Notes the height of each image with the threads that torch had for it and who was in."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int, int]] = []
        self.inside: list[object] = []

    def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
        ticket = object()
        self.inside.append(ticket)
        time.sleep(0.02)
        self.seen += [(len(image), torch.get_num_threads(), len(self.inside)) for image in images]
        self.inside.remove(ticket)
        if len(images[0]) == 5:
            raise MemoryError
        return super().predict(images)


def test_a_cpu_takes_an_image_a_core_and_large_ones_alone(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), {f"{n}.png": encoded(pixels(rng, 10, 10)) for n in range(9)})
    put(str(tmp_path), {f"large{n}.png": encoded(pixels(rng, 11, 10)) for n in range(2)})
    put(str(tmp_path), {f"no-room{n}.png": encoded(pixels(rng, 5, 10)) for n in range(2)})
    monkeypatch.setattr(engine, "CORES", Cores(3))
    monkeypatch.setattr(engine, "MAX_WHOLE_PIXELS", 300)
    predictor = Cpu()

    rows = run(str(tmp_path), predictor)

    assert {(height, threads) for height, threads, _ in predictor.seen} == {
        *((10, 1), (5, 1), (11, 3))
    }
    assert 1 < max(inside for height, _, inside in predictor.seen if height == 10) <= 3
    assert max(inside for height, _, inside in predictor.seen if height == 11) == 1
    failed = {key: row.error_class for key, row in rows.items() if row.status == "failed"}
    assert failed == {"no-room0.png": "MemoryError", "no-room1.png": "MemoryError"}


def test_the_seconds_of_the_network_are_those_of_all_cores(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), {f"{n}.png": encoded(pixels(rng)) for n in range(4)})
    monkeypatch.setattr(engine, "CORES", Cores(4))
    seconds = Seconds()
    entries = list(stores.list_entries(str(tmp_path)))
    segment(entries, Cpu(), PredictConfig(), seconds=seconds)
    told = seconds.by_stage["decode"] + 4 * seconds.by_stage["network"]
    assert sum(seconds.by_image.values()) == pytest.approx(told)
    assert all(alone > 0.02 for alone in seconds.by_image.values())


def test_a_gpu_has_a_batch_of_each_shard_at_once(tmp_path: Path, rng: np.random.Generator) -> None:
    class Gpu(Brightness):
        side_by_side = False
        both = threading.Barrier(2, timeout=20)

        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            self.both.wait()  # a batch of the other shard is there, too
            return super().predict(images)

    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng)) for index in range(3)})
    predictor, found = Gpu(), []
    threads = [
        threading.Thread(target=lambda: found.append(run(str(tmp_path), predictor)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2


def test_decoder_that_dies_costs_one_image(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, monkeypatch)
    good = {f"{index:02}.png": encoded(pixels(rng)) for index in range(20)}
    deaths = ("segfault", "abort", "swell", "header")
    put(str(tmp_path / "in"), good | {f"{death}.qoi": deadly(death) for death in deaths})
    engine.DECODERS.close()  # those that start now meet the deadly decoder
    try:
        rows = run(str(tmp_path / "in"))
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
        run(str(tmp_path / "in"))
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
    rows = run(str(tmp_path), **config.model_dump())
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
