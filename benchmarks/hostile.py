"""Hostile files: valid images in every format, damaged by chance, through the whole engine.

::

    python -m benchmarks.hostile --number 5000 --seed 0

Each file must end as one row. A model that knows one class stands in the network's place, as
the network never sees a damaged file. Writes ``docs/benchmarks/hostile.md``: the rows by
outcome, the slowest files, and the memory of the largest decoding process.
"""

import argparse
import io
import os
import shlex
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image

from benchmarks.machine import decoding_processes, describe
from fcn.classes import Classes
from fcn.errors import ImageError
from fcn.predict import Prediction
from tasks import stores
from tasks.engine import DECODERS, segment
from tasks.part_file import Row
from tasks.predict_config import PredictConfig
from tasks.seconds import Seconds

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "hostile.md"
MAX_PIXELS = 4_000_000


class NullModel:
    """No network: one class everywhere."""

    classes = Classes(("everything",), ((0, 0, 0),))

    side_by_side = True

    def predict(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        return [Prediction(np.zeros(image.shape[:2], np.uint8), 1.0) for image in images]


def valid_files(rng: np.random.Generator) -> dict[str, bytes]:
    """Small valid images by name: every format, mode and packing that tells decoders apart."""
    blocks = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8).repeat(5, axis=0).repeat(5, axis=1)
    noisy = Image.fromarray(blocks ^ rng.integers(0, 8, blocks.shape, dtype=np.uint8))
    deep = Image.fromarray(rng.integers(0, 65536, (45, 60), dtype=np.uint16))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    exif[ExifTags.Base.Make] = "camera"
    cases: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "rgb.jpg": (noisy, "JPEG", {}),
        "gray.jpg": (noisy.convert("L"), "JPEG", {}),
        "cmyk.jpg": (noisy.convert("CMYK"), "JPEG", {}),
        "progressive.jpg": (noisy, "JPEG", {"progressive": True}),
        "exif.jpg": (noisy, "JPEG", {"exif": exif}),
        "rgb.png": (noisy, "PNG", {}),
        "alpha.png": (noisy.convert("RGBA"), "PNG", {"exif": exif}),
        "palette.png": (noisy.convert("P"), "PNG", {"transparency": 3}),
        "gray-alpha.png": (noisy.convert("LA"), "PNG", {}),
        "bits.png": (noisy.convert("1"), "PNG", {}),
        "deep.png": (deep, "PNG", {}),
        "palette.gif": (noisy.convert("P"), "GIF", {}),
        "frames.gif": (noisy, "GIF", {"save_all": True, "append_images": [noisy.rotate(90)]}),
        "rgb.bmp": (noisy, "BMP", {}),
        "palette.bmp": (noisy.convert("P"), "BMP", {}),
        "rgb.tif": (noisy, "TIFF", {"exif": exif}),
        "lzw.tif": (noisy, "TIFF", {"compression": "tiff_lzw"}),
        "deflate.tif": (noisy, "TIFF", {"compression": "tiff_deflate"}),
        "jpeg.tif": (noisy, "TIFF", {"compression": "jpeg"}),
        "fax.tif": (noisy.convert("1"), "TIFF", {"compression": "group4"}),
        "cmyk.tif": (noisy.convert("CMYK"), "TIFF", {"compression": "packbits"}),
        "deep.tif": (deep, "TIFF", {}),
        "lossy.webp": (noisy, "WEBP", {"exif": exif}),
        "lossless.webp": (noisy, "WEBP", {"lossless": True}),
        "alpha.webp": (noisy.convert("RGBA"), "WEBP", {}),
        "frames.webp": (noisy, "WEBP", {"save_all": True, "append_images": [noisy.rotate(90)]}),
        "rgb.avif": (noisy, "AVIF", {"speed": 10, "exif": exif}),
        "alpha.avif": (noisy.convert("RGBA"), "AVIF", {"speed": 10}),
        "rgb.jp2": (noisy, "JPEG2000", {}),
        "lossy.jp2": (noisy, "JPEG2000", {"irreversible": True, "quality_layers": [20]}),
        "tiles.jp2": (noisy.convert("RGBA"), "JPEG2000", {"tile_size": (32, 32)}),
        "rgb.ppm": (noisy, "PPM", {}),
        "deep.pgm": (deep, "PPM", {}),
        "rgb.qoi": (noisy, "QOI", {}),
        "rgb.tga": (noisy, "TGA", {}),
        "runs.tga": (noisy, "TGA", {"compression": "tga_rle"}),
    }
    files = {}
    for name, (image, image_format, settings) in cases.items():
        file = io.BytesIO()
        image.save(file, image_format, **settings)
        files[name] = file.getvalue()
    return files


def hostile_files(number: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Damaged files by key, the formats in turn: the same for the same seed."""
    rng = np.random.default_rng(seed)
    valid = valid_files(rng)
    names = list(valid)
    for index in range(number):
        name = names[index % len(names)]
        data = bytearray(valid[name])
        for _ in range(rng.integers(1, 4)):
            blow = BLOWS[rng.integers(len(BLOWS))]
            blow(data, rng, valid[names[rng.integers(len(names))]])
        yield f"{index:05}-{name}", bytes(data)


def _place(data: bytearray, rng: np.random.Generator) -> int:
    """Half of the blows go to the first 200 bytes, where headers are."""
    end = len(data) if rng.integers(2) else min(200, len(data))
    return int(rng.integers(end)) if end else 0


def _flip(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    for _ in range(rng.integers(1, 8)):
        place = _place(data, rng)
        data[place : place + 1] = bytes([int(rng.integers(256))])


def _scribble(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    place = _place(data, rng)
    data[place : place + 20] = rng.bytes(int(rng.integers(1, 20)))


def _extreme(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    """A number of a header becomes as large, or as small, as its bytes can say."""
    place, width = _place(data, rng), int(rng.choice([1, 2, 4, 8]))
    data[place : place + width] = [b"\xff", b"\0", b"\x7f"][rng.integers(3)] * width


def _remove(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    place = _place(data, rng)
    del data[place : place + int(rng.integers(1, 40))]


def _repeat(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    place = _place(data, rng)
    data[place:place] = bytes(data[place : place + 60]) * int(rng.integers(1, 200))


def _cut(data: bytearray, rng: np.random.Generator, _: bytes) -> None:
    del data[_place(data, rng) :]


def _splice(data: bytearray, rng: np.random.Generator, other: bytes) -> None:
    """The rest is that of another format."""
    place = _place(data, rng)
    data[place:] = other[place:]


BLOWS: tuple[Callable[[bytearray, np.random.Generator, bytes], None], ...] = (
    *(_flip, _flip, _scribble, _extreme, _extreme, _remove, _repeat, _cut, _splice),
)


def rows_of(files: dict[str, bytes], folder: Path, **settings: Any) -> list[Row]:
    """One row for each file, by the engine."""
    for key, data in files.items():
        (folder / key).write_bytes(data)
    config = PredictConfig(max_image_pixels=MAX_PIXELS, **settings)
    entries = list(stores.list_entries(str(folder)))
    return segment(entries, NullModel(), config, seconds=Seconds())


def peak_memory() -> list[int]:
    """Most bytes that each living decoding process of this process ever had."""
    found = []
    for process in decoding_processes():
        lines = (process / "status").read_text("utf-8").splitlines()
        status = dict(line.split(":", 1) for line in lines)
        found.append(1024 * int(status["VmHWM"].split()[0]))
    return found


def seconds_of(data: bytes) -> float:
    """How long the decoders take to give an image or an error."""
    start = time.perf_counter()
    try:
        height, width = DECODERS.size(data, max_pixels=MAX_PIXELS)
        DECODERS.decode(data, max_pixels=height * width)
    except ImageError:
        pass
    return time.perf_counter() - start


def page(files: dict[str, bytes], rows: Sequence[Row], seconds: float) -> str:
    """The result as Markdown."""
    outcomes = Counter(row.error_class or row.status for row in rows)
    load = os.getloadavg()[0]
    kinds = len(valid_files(np.random.default_rng(0)))
    slowest = sorted((seconds_of(data), key) for key, data in files.items())[:-6:-1]
    formats = {key.rpartition(".")[2] for key in files}
    table = "\n".join(f"| {name} | {count:,} |" for name, count in outcomes.most_common())
    return f"""# Hostile files

{len(files):,} files made of valid images by one to three blows each: bytes changed, numbers of
headers made as large or as small as they get, pieces removed, repeated, cut off, or replaced by
those of another format. {kinds} kinds of images with {len(formats)} endings, see
`valid_files`. Through the whole engine, with a model that knows one class in the network's place.

| ended as | rows |
|---|---|
{table}
| **files with exactly one row** | **{len(rows):,} of {len(files):,}** |

`ok` are files that still are images. {seconds:.0f} s for all, on a machine that had a load of
{load:.0f} when it was through. The slowest to decode:
{", ".join(f"{key} {1e3 * taken:.0f} ms" for taken, key in slowest)}.
Most memory of a decoding process: {max(peak_memory()) / 2**20:.0f} MiB.

Command: `python -m benchmarks.hostile {shlex.join(sys.argv[1:])}`

{describe()}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--number", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    files = dict(hostile_files(args.number, args.seed))
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        rows = rows_of(files, Path(folder))
        seconds = time.perf_counter() - start
    assert [row.entry.key for row in rows] == sorted(files)
    text = page(files, rows, seconds)
    PAGE.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
