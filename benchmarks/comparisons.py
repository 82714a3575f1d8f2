"""What the parts of an FCN are worth: trainings on CamVid that differ in one thing, compared.

::

    python -m benchmarks.comparisons --data DIR --init squeezenet.npz --work WORK

Strides 32, 16, 8 and 4; ImageNet weights against none; learnable upsampling against fixed;
class weights against none. Every arm is trained with several seeds and scored on val after its
last step: val chooses nothing here. What is trained already is not trained again, so that the
command may be stopped, and run beside itself with other ``--arms``. Writes
``docs/benchmarks/comparisons.md`` once every arm is there.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import fcn
from benchmarks.machine import describe
from fcn.evaluate import score_samples
from fcn.intervals import tally
from fcn.recipes import TrainConfig
from flows.ingest import ingest
from flows.train import train
from tasks.dataset import DatasetInfo, open_split, read_info
from tasks.stores import exists, read_bytes

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "comparisons.md"

NUM_DRAWS = 2000
LEVEL = 0.95

Tallies = NDArray[np.int64]
"""Right, true and predicted pixels, seeds x images x 3 x classes."""


@dataclass(frozen=True)
class Comparison:
    """Arms in the order in which they should score, the plain one first."""

    title: str
    arms: Sequence[str]


COMMON: Mapping[str, Any] = {
    "batch_size": 8,
    "crop_size": (192, 256),
    "num_workers": 0,
    "evaluate_every": 1000,
}
REGNET = {"backbone": "regnet_x_400mf", "init": "none", "epochs": 12}
SQUEEZENET = {"backbone": "squeezenet1_1", "stride": 8, "epochs": 8}  # init: the given file

ARMS: Mapping[str, Mapping[str, Any]] = {
    "squeezenet 8s": SQUEEZENET,
    "squeezenet 16s": SQUEEZENET | {"stride": 16},
    "squeezenet 4s": SQUEEZENET | {"stride": 4},
    "squeezenet 8s, no ImageNet": SQUEEZENET | {"init": "none"},
    "squeezenet 8s, learnable upsampling": SQUEEZENET | {"learnable_upsampling": True},
    "squeezenet 8s, class weights": SQUEEZENET | {"class_weights": "median_frequency"},
    "regnet 32s": REGNET | {"stride": 32},
    "regnet 16s": REGNET | {"stride": 16},
    "regnet 8s": REGNET | {"stride": 8},
}

COMPARISONS = (
    Comparison("Strides, from scratch", ("regnet 32s", "regnet 16s", "regnet 8s")),
    Comparison(
        "Strides, from ImageNet weights", ("squeezenet 16s", "squeezenet 8s", "squeezenet 4s")
    ),
    Comparison("ImageNet weights against none", ("squeezenet 8s, no ImageNet", "squeezenet 8s")),
    Comparison(
        "Learnable upsampling against fixed",
        ("squeezenet 8s", "squeezenet 8s, learnable upsampling"),
    ),
    Comparison(
        "Median-frequency class weights against none",
        ("squeezenet 8s", "squeezenet 8s, class weights"),
    ),
)


def place(arm: str, seed: int, work: str) -> Path:
    """Where the tallies of a training are, in its folder."""
    return Path(work) / arm.replace(", ", "-").replace(" ", "-") / f"seed-{seed}" / "tallies.npy"


def tallies(info: DatasetInfo, arm: str, seed: int, init: str, work: str) -> Tallies:
    """An arm's tallies of the val images, images x 3 x classes; trained where it is not yet."""
    result = place(arm, seed, work)
    if not result.exists():
        folder = result.parent
        config = TrainConfig(**({"init": init, "seed": seed} | COMMON | ARMS[arm]))
        trained = train(info.url, str(folder), config)
        predictor = fcn.Predictor(fcn.load(read_bytes(trained.model_url)))
        scored = score_samples(predictor, open_split(info, "val"))
        np.save(result, np.stack([tally(sample.confusion) for sample in scored]))
    return np.load(result)


def mean_iu(counts: NDArray[Any]) -> NDArray[np.float64]:
    """Mean IU over the classes that occur, of right, true and predicted pixels ``… x 3 x C``."""
    right, true, predicted = np.moveaxis(counts, -2, 0).astype(float)
    with np.errstate(invalid="ignore"):
        return np.nanmean(right / (true + predicted - right), axis=-1)


def gain(plain: Tallies, other: Tallies) -> tuple[float, float, float]:
    """What ``other`` scores above ``plain``, in mean IU averaged over the seeds; and from where
    to where that lies with other images and other seeds.

    Each draw takes the same images for both arms, and seeds for each.
    """
    rng = np.random.default_rng(0)
    num_seeds, num_images = plain.shape[:2]
    gains = np.empty(NUM_DRAWS)
    for number in range(NUM_DRAWS):
        times = np.bincount(rng.integers(num_images, size=num_images), minlength=num_images)
        values = [
            mean_iu(np.einsum("i,sikc->skc", times, arm))[
                rng.integers(num_seeds, size=num_seeds)
            ].mean()
            for arm in (plain, other)
        ]
        gains[number] = values[1] - values[0]
    low, high = np.quantile(gains, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    found = [mean_iu(arm.sum(axis=1)).mean() for arm in (plain, other)]
    return float(found[1] - found[0]), float(low), float(high)


def table(comparison: Comparison, results: Mapping[str, Tallies]) -> list[str]:
    """A comparison as Markdown."""
    lines = [
        f"## {comparison.title}",
        "",
        "| network | mean IU by seed, % | mean | gain over the row above (95 % interval) |",
        "|---|---|---|---|",
    ]
    above = None
    for arm in comparison.arms:
        seeds = 100 * mean_iu(results[arm].sum(axis=1))
        difference = ""
        if above is not None:
            both = min(len(above), len(results[arm]))
            points, low, high = (100 * v for v in gain(above[:both], results[arm][:both]))
            difference = f"{points:+.2f} ({low:+.2f} to {high:+.2f})"
        by_seed = ", ".join(f"{value:.2f}" for value in seeds)
        lines.append(f"| {arm} | {by_seed} | {seeds.mean():.2f} | {difference} |")
        above = results[arm]
    return [*lines, ""]


def page(info: DatasetInfo, results: Mapping[str, Tallies]) -> str:
    """All comparisons as Markdown."""
    splits, num_seeds = info.splits, max(map(len, results.values()))
    height, width = COMMON["crop_size"]
    about = (
        f"CamVid, {splits['train'].rows} training and {splits['val'].rows} val images, "
        f"{len(info.classes)} classes, scored on val at native resolution after the last step. "
        f"Within a table the trainings differ in one thing. Up to {num_seeds} seeds each, all of "
        f"which are shown; a gain is over the seeds that both rows have. Crops of "
        f"{height} x {width}, batches of {COMMON['batch_size']}, the modern recipe; SqueezeNet "
        f"{SQUEEZENET['epochs']} epochs, RegNetX-400MF {REGNET['epochs']}. Trainings as short as "
        "these compare; they don't show what a network can reach."
    )
    caveat = (
        "The intervals are bootstrap intervals over the val images, the same ones for both rows, "
        f"and over the seeds ({NUM_DRAWS:,} draws). The val images are frames of one video and "
        "resemble each other, so they are narrower than those of other videos would be; with so "
        "few seeds they say little of other trainings, with one seed nothing."
    )
    command = "`python -m benchmarks.comparisons --data CAMVID --init NPZ --work WORK --seeds {}`"
    return "\n".join(
        [
            "# What the parts of an FCN are worth",
            "",
            fill(about, 100),
            "",
            fill(caveat, 100),
            "",
            *(line for item in COMPARISONS for line in table(item, results)),
            command.format(num_seeds),
            "",
            describe(),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True, help="CamVid's folder")
    parser.add_argument("--init", required=True, help="SqueezeNet's ImageNet weights (.npz)")
    parser.add_argument("--work", required=True, help="where everything goes")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each arm")
    parser.add_argument(
        "--found", action="store_true", help="train nothing: a page of what is there"
    )
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), help="only these, and no page")
    args = parser.parse_args()
    torch.set_num_threads(1)
    dataset_url = f"{args.work}/dataset"
    if not exists(f"{dataset_url}/dataset.json"):
        ingest(args.data, dataset_url)
    info = read_info(dataset_url)
    results = {arm: [] for arm in args.arms or ARMS}
    for seed in range(args.seeds):
        for arm, found in results.items():
            if args.found and not place(arm, seed, args.work).exists():
                continue
            found.append(tallies(info, arm, seed, args.init, args.work))
    if not args.arms:
        text = page(info, {arm: np.stack(found) for arm, found in results.items()})
        PAGE.write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
