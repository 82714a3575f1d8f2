"""An image a core on a CPU, batches on a GPU; what fails alone, and what is told of it."""

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

import fcn
from tasks import engine, networks, stores
from tasks.cores import Cores
from tasks.engine import segment
from tasks.predict_config import PredictConfig
from tasks.seconds import Seconds
from tests.tasks.pictures import Brightness, encoded, pixels, put, rows_of


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


def test_image_too_large_for_the_device_fails_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng, 10, 10)) for index in range(3)})
    put(str(tmp_path), {"large.png": encoded(pixels(rng, 50, 50))})
    rows = rows_of(str(tmp_path), Memory(100))
    assert [row.status for row in rows.values()] == ["ok", "ok", "ok", "failed"]
    assert rows["large.png"].error_class == "OutOfMemoryError"
    assert (rows["large.png"].height, rows["large.png"].width) == (50, 50)


def test_image_that_memory_has_no_room_for_fails_alone(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    class Hungry(Brightness):
        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            if images[0].shape[0] == 50:
                torch.empty(1 << 50)
            return super().predict(images)

    put(str(tmp_path), {"a.png": encoded(pixels(rng)), "large.png": encoded(pixels(rng, 50))})
    rows = rows_of(str(tmp_path), Hungry())
    assert [row.status for row in rows.values()] == ["ok", "failed"]
    assert rows["large.png"].error_class == "MemoryError"
    assert "allocate" in str(rows["large.png"].error)


def test_broken_network_is_no_fault_of_the_images(tmp_path: Path, rng: np.random.Generator) -> None:
    class Broken(Brightness):
        def predict(self, images: Sequence[np.ndarray]) -> list[fcn.Prediction]:
            raise RuntimeError("CUDA error: device-side assert triggered")

    put(str(tmp_path), {"a.png": encoded(pixels(rng))})
    with pytest.raises(RuntimeError, match="CUDA error"):
        rows_of(str(tmp_path), Broken())


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
    monkeypatch.setattr(networks, "MAX_WHOLE_PIXELS", 300)
    predictor = Cpu()

    rows = rows_of(str(tmp_path), predictor)

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
        threading.Thread(target=lambda: found.append(rows_of(str(tmp_path), predictor)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 2


def test_batches_are_bounded_in_pixels(
    tmp_path: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(str(tmp_path), {f"{index}.png": encoded(pixels(rng, 10, 10)) for index in range(9)})
    monkeypatch.setattr(engine, "BATCH_PIXELS", 450)
    predictor = Memory(1000)
    rows_of(str(tmp_path), predictor)
    assert predictor.most == 400
