"""The rate of training, and how long the network waits, against a plain loop.

::

    python -m benchmarks.training --data CAMVID --init squeezenet.npz

FCN-8s on SqueezeNet, batches of 8 crops of 256 x 320, on CamVid's training split. Ours: the
trainer of `train`, its dataset on a local disk, with a process that decodes and augments. The
plain loop is what torchvision's reference scripts for segmentation do: a folder of files,
Pillow, torchvision's transforms (scale, crop, flip, normalise), a `DataLoader` with one process,
the same network in PyTorch's own memory layout, AdamW. The two take turns of so many steps; the
first steps of a turn, while its processes start, are not counted. Writes
``docs/benchmarks/training.md``.
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import v2

import fcn
from benchmarks.machine import describe
from benchmarks.prediction import spread
from fcn.input import TORCHVISION
from fcn.recipes import TrainConfig
from fcn.train import Trainer
from fcn.weights import transplant
from flows.ingest import ingest
from tasks import stores
from tasks.dataset import open_split, read_info

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "training.md"

CROP, BATCH, WARM = (256, 320), 8, 4
"""Crops, images of a step, and steps of a turn that are not counted."""

Turn = Iterator[tuple[float, float]]
"""Seconds of each step, and of these the seconds that the network waited for its batch."""


def ours(dataset_url: str, init: str) -> Turn:
    """The trainer of `train`."""
    info = read_info(dataset_url)
    config = TrainConfig(
        backbone="squeezenet1_1", init=init, crop_size=CROP, batch_size=BATCH, num_workers=1
    )
    net = fcn.FCN("squeezenet1_1", len(info.classes), 8)
    first = transplant(net, init, info.classes, stores.read_bytes)
    trainer = Trainer(
        fcn.Model(net, info.classes, first.input),
        open_split(info, "train"),
        config,
        class_pixels=info.splits["train"].class_pixels,
        transplant=first,
    )
    for step in trainer.run():
        yield step.seconds, step.waited


class Folder(Dataset[Any]):
    """Files of CamVid, decoded and augmented as torchvision's reference does."""

    def __init__(self, folder: Path) -> None:
        self.images = sorted((folder / "train").iterdir())
        self.masks = [folder / "trainannot" / f"{image.stem}.png" for image in self.images]
        self.transform = v2.Compose(
            [
                v2.ScaleJitter(target_size=CROP, scale_range=(0.5, 2.0)),
                v2.RandomCrop(CROP, pad_if_needed=True, fill={tv_tensors.Mask: 255, "others": 0}),
                v2.RandomHorizontalFlip(),
                v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}, scale=True),
                v2.Normalize(*([value / 255 for value in row] for row in INPUT)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        with Image.open(self.images[index]) as image:
            pixels = tv_tensors.Image(image.convert("RGB"))
        with Image.open(self.masks[index]) as mask:
            label = tv_tensors.Mask(np.array(mask))
        image, label = self.transform(pixels, label)
        return image, label.long()


INPUT = (TORCHVISION.mean, TORCHVISION.std)


def plain(folder: Path, num_classes: int) -> Turn:
    """The loop of torchvision's reference scripts."""
    net = fcn.FCN("squeezenet1_1", num_classes, 8).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    loader = DataLoader(Folder(folder), BATCH, shuffle=True, num_workers=1, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    while True:
        start = time.perf_counter()
        images, labels = next(batches)
        waited = time.perf_counter() - start
        labels[labels >= num_classes] = 255  # CamVid's void class
        loss = functional.cross_entropy(net(images), labels, ignore_index=255)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield time.perf_counter() - start, waited


def measure(turn: Turn, steps: int) -> tuple[float, float]:
    """Images a second, and the share of the time that the network waited."""
    counted = np.array(list(itertools.islice(turn, WARM, WARM + steps)))
    seconds, waited = counted.sum(axis=0)
    return steps * BATCH / seconds, waited / seconds


HEAD = """# Training: the rate, and how long the network waits

FCN-8s on SqueezeNet, batches of 8 crops of 256 x 320 of CamVid, on two cores: medians of turns,
with the smallest and the largest. What the plain loop does is told in `benchmarks/training.py`.

| what | images/s | the network waits, % |
|---|---|---|"""


COMMAND = "Command: `python -m benchmarks.training --data CAMVID --init SQUEEZENET.npz`"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="CamVid's folder")
    parser.add_argument("--init", required=True, help="SqueezeNet's ImageNet weights (.npz)")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12, help="of a turn, that are counted")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"fcn-flows": [], "plain loop": []}
    with tempfile.TemporaryDirectory() as folder:
        ingest(str(args.data), folder)
        num_classes = len(read_info(folder).classes)
        for _ in range(args.turns):
            for name, turn in (
                ("fcn-flows", ours(folder, args.init)),
                ("plain loop", plain(args.data, num_classes)),
            ):
                found[name].append(measure(turn, args.steps))
                turn.close()
                print(f"{name}: {found[name][-1]}", flush=True)
    lines = [
        f"| {name} | {spread(rates)} | {spread(100 * waits)} |"
        for name, values in found.items()
        for rates, waits in [np.array(values).T]
    ]
    ratio = np.divide(*(np.array(values)[:, 0] for values in found.values()))
    faster = f"fcn-flows trains {spread(ratio, 2)} times as many images a second."
    turns = f"Turns: {args.turns}, of {args.steps} steps."
    text = "\n".join([HEAD, *lines, "", faster, "", turns, COMMAND, "", describe(), ""])
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
