"""What an image costs by its size, and by the number of classes: flat per unit, or not.

::

    python -m benchmarks.sizes

FCN-8s on SqueezeNet, JPEGs of 0.2 to 100 megapixels with 21 classes, and of 0.2 megapixels with
2 to 150 classes; from a planned manifest to the committed part, without Prefect. Above 4
megapixels an image runs in tiles that overlap by what the network sees: those cost the more
pixels that the growth beyond there shows. Weights are random. Writes
``docs/benchmarks/sizes.md``.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fcn
from benchmarks.machine import command, describe
from benchmarks.prediction import photograph, planned, spread
from fcn.input import TORCHVISION
from tasks import stores
from tasks.predict_config import PredictConfig
from tasks.shards import ShardReport, write_part_with

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "sizes.md"

SIZES = (375, 866, 1732, 3000, 8660)
"""Heights of images of 4 : 3, which makes 0.2, 1, 4, 12 and 100 megapixels."""

CLASSES = (2, 11, 21, 59, 150)
"""Of a mask, of CamVid, PASCAL VOC, PASCAL-Context and ADE20K."""

FEWER_ROUNDS = 2
"""Of the largest image, which runs in a hundred tiles: each tells the cost again."""

SMALL = 16
"""Images of the small size in a round; of the larger ones fewer, but one at least."""


def predictor(num_classes: int) -> fcn.Predictor:
    """FCN-8s on SqueezeNet with random weights."""
    torch.manual_seed(0)
    net = fcn.FCN("squeezenet1_1", num_classes, 8)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():  # score layers
            torch.nn.init.normal_(layer.weight, std=0.1)
    classes = fcn.Classes.named(map(str, range(num_classes)), 255)
    return fcn.Predictor(fcn.Model(net, classes, TORCHVISION), device="cpu")


def enlarged(data: bytes, height: int) -> bytes:
    """A JPEG of another height, 4 : 3."""
    file = io.BytesIO()
    with Image.open(io.BytesIO(data)) as image:
        image.resize((4 * height // 3, height), Image.Resampling.BICUBIC).save(file, "JPEG")
    return file.getvalue()


def measure(
    place: str, height: int, model: fcn.Predictor, rounds: int
) -> tuple[np.ndarray, Sequence[ShardReport]]:
    """Seconds per image, round by round, and what the shards said.

    Of the small size a round before them is not counted; the larger ones come after it.
    """
    rng = np.random.default_rng(0)
    number = max(1, SMALL * SIZES[0] ** 2 // height**2)
    for index in range(number):
        stores.write_bytes(f"{place}/images/{index:04}.jpg", enlarged(photograph(rng), height))
    config = PredictConfig(device="cpu", images_per_shard=number)
    seconds, reports = [], []
    warm = int(height == SIZES[0])
    rounds = min(rounds, FEWER_ROUNDS) if height == SIZES[-1] else rounds
    for turn in range(rounds + warm):
        manifest = planned(f"{place}/images", f"{place}/out-{turn}", config)
        start = time.perf_counter()
        report = write_part_with(model, manifest, 0, config)
        assert report.part.ok == number, "an image failed"
        if turn >= warm:
            seconds.append((time.perf_counter() - start) / number)
            reports.append(report)
    return np.array(seconds), reports


def line(name: str, unit: float, seconds: np.ndarray, reports: Sequence[ShardReport]) -> str:
    """A row: milliseconds per image and per unit, and of each stage per unit."""
    images = sum(report.part.rows for report in reports)
    stages = [
        f"{1e3 * sum(report.stages[stage] for report in reports) / images / unit:.1f}"
        for stage in reports[0].stages
    ]
    cells = [name, spread(1e3 * seconds), spread(1e3 * seconds / unit), *stages]
    row = f"| {' | '.join(cells)} |"
    print(row, flush=True)
    return row


def heading(unit: str, reports: Sequence[ShardReport]) -> list[str]:
    """Names of the columns."""
    names = [unit, "ms per image", f"ms per {unit}", *reports[0].stages]
    return [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]


ABOUT = """# The cost of an image, by its size and by its classes

FCN-8s on SqueezeNet on two cores, from a planned manifest to the committed part: medians of
rounds, with the smallest and the largest. Stages are milliseconds of work per unit, summed over
threads; they overlap. Up to 4 megapixels an image runs whole, above in tiles of 1024 pixels that
overlap by what the network sees."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    sizes, classes, reports = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        model = predictor(21)
        for height in SIZES:
            seconds, reports = measure(f"{folder}/{height}", height, model, args.rounds)
            megapixels = height * (4 * height // 3) / 1e6
            sizes.append(line(f"{megapixels:.1f}", megapixels, seconds, reports))
        for number in CLASSES:
            place = f"{folder}/classes-{number}"
            seconds, reports = measure(place, SIZES[0], predictor(number), args.rounds)
            classes.append(line(str(number), number, seconds, reports))
    text = "\n".join(
        [
            *(ABOUT, "", "## By megapixels", "", *heading("megapixel", reports), *sizes, ""),
            *("## By classes, at 0.2 megapixels", "", *heading("class", reports), *classes, ""),
            f"Rounds: {args.rounds}, of 100 megapixels {min(args.rounds, FEWER_ROUNDS)}.",
            *(command("sizes"), "", describe(), ""),
        ]
    )
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
