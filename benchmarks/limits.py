"""The parts of a prediction, each against its limit: the machine's, or the best known way's.

::

    python -m benchmarks.limits

One thread, medians of interleaved runs, per image of 500 x 375 and 21 classes. The limits:

- **list**: ``os.scandir`` with the size and time of every file.
- **read**: ``open().read()`` of the same files.
- **decode**: simplejpeg alone, which our decoder checks and turns upright around.
- **network** (SqueezeNet's FCN-8s up to its coarse scores): its operations at the rate of a
  large matrix product of the same precision.
- **upsampling + labels**: reading the coarse scores and writing the labels once, at the memory
  bandwidth that a copy of 256 MB shows; and, as what is usual, `interpolate` and ``argmax``.
- **encode**: zlib alone at its fastest level on the same pixels, without filter or PNG.
- **write**: the part's bytes to a file of the same disk, synchronised.

Writes ``docs/benchmarks/limits.md``.
"""

import argparse
import itertools
import os
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import fcn
from benchmarks.machine import command, describe
from benchmarks.prediction import HEIGHT, NUM_CLASSES, WIDTH, photograph, predictor, spread
from fcn.images import decode_image
from fcn.input import TORCHVISION
from tasks import part_file, reading, stores
from tasks.part_file import Row

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "limits.md"
NUM_FILES = 200

Part = dict[str, Callable[[], object] | float]
"""Ways of doing the same thing, ours first; or the seconds of one that is only computed."""


def median_seconds(ways: Part, runs: int) -> dict[str, np.ndarray]:
    """Seconds of each way, run by run, in turn; the first run is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(runs + 1):
        for name, way in ways.items():
            start = time.perf_counter()
            taken = way if isinstance(way, float) else _call(way, start)
            if run:
                seconds[name].append(taken)
    return {name: np.array(values) for name, values in seconds.items()}


def _call(way: Callable[[], object], start: float) -> float:
    way()
    return time.perf_counter() - start


def storage(folder: Path, files: list[bytes]) -> dict[str, tuple[Part, int]]:
    """Listing, reading and writing, and for how many images each is."""
    for index, data in enumerate(files):
        (folder / f"{index:05}.jpg").write_bytes(data)
    entries = list(stores.list_entries(str(folder)))

    def scan() -> list[tuple[int, int]]:
        with os.scandir(folder) as found:
            return [(e.stat().st_size, e.stat().st_mtime_ns) for e in found]

    mask = fcn.encode_mask(
        label_map(), fcn.Classes.named(map(str, range(NUM_CLASSES)), 255).palette
    )
    rows = [
        Row(
            entry=entry,
            status="ok",
            height=HEIGHT,
            width=WIDTH,
            mask=mask,
            mask_path=f"{entry.key}.png",
            class_pixels=[0] * NUM_CLASSES,
            confidence=1.0,
        )
        for entry in entries
    ]
    card = part_file.summarise(rows, run=0, number=0, run_digest="0" * 64)
    data = part_file.encode(rows, card, "png")
    numbers = itertools.count()

    def put() -> None:
        part = part_file.encode(rows, card, "png")
        stores.create_bytes(f"{folder}/parts/part-{next(numbers):05}.parquet", part)

    def plain_put() -> None:
        with (folder / f"plain-{next(numbers):05}").open("wb") as file:
            file.write(data)
            os.fsync(file.fileno())

    ours_read = {"ours": lambda: reading.read_objects(entries)}
    plain_read = {
        "limit": lambda: [(folder / f"{i:05}.jpg").read_bytes() for i in range(NUM_FILES)]
    }
    return {
        "list": (
            {"ours": lambda: list(stores.list_entries(str(folder))), "limit": scan},
            NUM_FILES,
        ),
        "read": (ours_read | plain_read, NUM_FILES),
        "write": ({"ours": put, "limit": plain_put}, NUM_FILES),
    }


def label_map() -> np.ndarray:
    """Regions such as a network's: a coarse random map, enlarged."""
    coarse = np.random.default_rng(0).integers(NUM_CLASSES, size=(HEIGHT // 25, WIDTH // 25))
    return coarse.repeat(25, 0).repeat(25, 1).astype(np.uint8)


def computing(data: bytes) -> dict[str, tuple[Part, int]]:
    """Decoding, upsampling and encoding of one image."""
    label = label_map()
    palette = fcn.Classes.named(map(str, range(NUM_CLASSES)), 255).palette
    net = predictor("squeezenet1_1")
    score = net.net.score(TORCHVISION.normalise(pixels(data))).detach()
    source = torch.empty(64 << 20)
    target = torch.empty_like(source)
    moved = score.numel() * 4 + HEIGHT * WIDTH

    def copy() -> None:
        target.copy_(source)

    copies = median_seconds({"copy": copy}, 5)["copy"]
    bandwidth = 2 * source.numel() * 4 / float(np.median(copies))

    def usual() -> torch.Tensor:
        size = (HEIGHT, WIDTH)
        return functional.interpolate(score, size, mode="bilinear").argmax(dim=1).byte()

    labels = {
        "ours": lambda: net._choose(score, 0, 0, HEIGHT, WIDTH),  # the stage itself
        "usual": usual,
        "limit": moved / bandwidth,
    }
    return {
        "decode": (
            {
                "ours": lambda: decode_image(data),
                "limit": lambda: simplejpeg.decode_jpeg(data, "RGB"),
            },
            1,
        ),
        "upsampling + labels": (labels, 1),
        "encode": (
            {
                "ours": lambda: fcn.encode_mask(label, palette),
                "limit": lambda: zlib.compress(label, 1),
            },
            1,
        ),
    }


def pixels(data: bytes) -> torch.Tensor:
    return torch.from_numpy(decode_image(data).pixels)[None].permute(0, 3, 1, 2)


@torch.inference_mode()
def network(data: bytes) -> Part:
    """The trunk and the scores, and a matrix product of as many operations."""
    net = predictor("squeezenet1_1").net
    image = TORCHVISION.normalise(pixels(data))
    with FlopCounterMode(display=False) as counter:
        net.score(image)
    size = 1024
    share = counter.get_total_flops() / (2 * size**3)
    left, right = torch.randn(size, round(size * share)), torch.randn(round(size * share), size)
    return {"ours": lambda: net.score(image), "limit": lambda: left @ right}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(NUM_FILES)]
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        parts = (
            storage(Path(folder), files) | computing(files[0]) | {"network": (network(files[0]), 1)}
        )
        lines = [line(name, *parts[name], args.runs) for name in ORDER]
    runs = f"Runs: {args.runs}."
    text = "\n".join([HEAD, *lines, "", NOTE, "", runs, command("limits"), "", describe(), ""])
    args.page.write_text(text, encoding="utf-8")
    print(text)


ORDER = ("list", "read", "decode", "network", "upsampling + labels", "encode", "write")

HEAD = """# The parts of a prediction against their limits

Milliseconds per image of 500 x 375, one thread: medians of interleaved runs, with the smallest
and the largest.

| part | ours, ms | limit, ms | ours / limit | the usual way, ms |
|---|---|---|---|---|"""

NOTE = """What the limits are is told in `benchmarks/limits.py`. That of the upsampling is computed
from the bytes that must move; nothing runs that fast."""


def line(name: str, ways: Part, images: int, runs: int) -> str:
    seconds = {way: 1e3 * values / images for way, values in median_seconds(ways, runs).items()}
    ratio = spread(seconds["ours"] / seconds["limit"], 2)
    usual = spread(seconds["usual"], 3) if "usual" in seconds else ""
    cells = [name, spread(seconds["ours"], 3), spread(seconds["limit"], 3), ratio, usual]
    row = f"| {' | '.join(cells)} |"
    print(row, flush=True)
    return row


if __name__ == "__main__":
    main()
