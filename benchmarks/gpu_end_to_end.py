"""JPEGs of a folder to masks in a Parquet file, by one GPU: the last part of `gpu_prediction`.

Decoded by processes of their own on all cores, labelled through `fcn.streams`. Needs what
`gpu_prediction` needs and no more.
"""

import io
import itertools
import os
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from fcn.decoders import Decoders
from fcn.input import TORCHVISION
from fcn.masks import count_labels, encode_mask
from fcn.model import FCN
from fcn.streams import Labeller, Streams


class EndToEnd:
    """A network on its device, and the images of a folder.

    Args:
        net: The network, on the device.
        device: Where it is.
        size: Height and width of the images.
        num_classes: Of the masks.
    """

    def __init__(
        self, net: FCN, device: torch.device, size: tuple[int, int], num_classes: int
    ) -> None:
        self.net, self.device, self.size, self.num_classes = net, device, size, num_classes
        self.window = (0, 0, *size)

    def rates(self, num: int, sizes: Sequence[int]) -> tuple[float, dict[int, float]]:
        """Images a second: decoded alone, and from JPEGs to masks with batches of each size."""
        cores = os.cpu_count() or 1
        with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(cores) as pool:
            paths = write_jpegs(Path(folder), num, *self.size)
            decoders = Decoders(cores)
            try:
                decode = partial(decoded, decoders, self.size[0] * self.size[1])
                list(pool.map(decode, paths[: 4 * cores]))  # the processes start
                start = time.perf_counter()
                deque(pool.map(decode, paths), maxlen=0)
                alone = len(paths) / (time.perf_counter() - start)
                rates = {}
                begin = self.begin()
                for size in sizes:
                    self.segment(paths[: 8 * size], size, decode, pool, begin, Path(folder))
                    start = time.perf_counter()
                    self.segment(paths, size, decode, pool, begin, Path(folder))
                    rates[size] = len(paths) / (time.perf_counter() - start)
            finally:
                decoders.close()
        return alone, rates

    def begin(self) -> Callable[[Sequence[np.ndarray]], Callable[[], object]]:
        """What starts a batch, as `fcn.Predictor` does on a GPU."""
        if self.device.type == "cuda":
            streams = Streams(self.net, TORCHVISION, [self.num_classes])
            return lambda images: streams.begin(images, self.window)

        labeller = Labeller(self.net, TORCHVISION, [self.num_classes])

        def start(images: Sequence[np.ndarray]) -> Callable[[], object]:
            with torch.inference_mode():
                label, sums = labeller(torch.from_numpy(np.stack(images)), self.window)
            return lambda: ([label.numpy()], sums)

        return start

    def segment(
        self,
        paths: Sequence[Path],
        size: int,
        decode: Callable[[Path], np.ndarray],
        pool: ThreadPoolExecutor,
        begin: Callable[[Sequence[np.ndarray]], Callable[[], object]],
        folder: Path,
    ) -> None:
        """Write a row for each image: name, mask, pixels by class, mean probability."""
        rows: list[Future[dict[str, object]]] = []
        batches: Iterator[tuple[Path, ...]] = (
            tuple(paths[first : first + size]) for first in range(0, len(paths), size)
        )
        decoding_now: deque[tuple[tuple[Path, ...], list[Future[np.ndarray]]]] = deque()
        in_work: deque[tuple[tuple[Path, ...], Callable[[], object]]] = deque()

        def finish() -> None:
            names, wait = in_work.popleft()
            (label,), sums = wait()  # type: ignore[misc]
            means = (sums[0] / (self.size[0] * self.size[1])).tolist()
            rows.extend(
                pool.submit(row, self.num_classes, *one)
                for one in zip(names, label, means, strict=True)
            )

        for batch in itertools.chain(batches, [()] * 4):
            if batch:
                decoding_now.append((batch, [pool.submit(decode, path) for path in batch]))
            if decoding_now and (len(decoding_now) == 4 or not batch):
                names, jobs = decoding_now.popleft()
                in_work.append((names, begin([job.result() for job in jobs])))
                if len(in_work) == 2:
                    finish()
        while in_work:
            finish()
        table = pa.Table.from_pylist([job.result() for job in rows])
        pq.write_table(table, folder / "part.parquet", compression="none", use_dictionary=False)
        assert table.num_rows == len(paths)


def row(num_classes: int, path: Path, label: np.ndarray, mean: float) -> dict[str, object]:
    """What is written of an image."""
    return {
        "key": path.name,
        "mask": encode_mask(label),
        "class_pixels": count_labels(label, num_classes),
        "confidence": mean,
    }


def decoded(decoders: Decoders, max_pixels: int, path: Path) -> np.ndarray:
    """Pixels of a file, by a process that decodes."""
    return decoders.decode(path.read_bytes(), max_pixels=max_pixels).pixels


def write_jpegs(folder: Path, num: int, height: int, width: int) -> list[Path]:
    """Files about as large as photographs': shapes, and some noise; 32 different ones."""
    rng = np.random.default_rng(0)
    files = []
    for _ in range(min(num, 32)):
        small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))
        noisy = (smooth + rng.normal(0, 6, smooth.shape)).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(noisy).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    paths = [folder / f"{index:06}.jpg" for index in range(num)]
    for path, data in zip(paths, itertools.cycle(files), strict=False):
        path.write_bytes(data)
    return paths
