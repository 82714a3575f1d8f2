"""FCN-8s on VGG16 with batch normalisation, CamVid at 480 x 360 from scratch, on one GPU.

::

    python -m flows ingest --source-url CAMVID --dataset-url DATASET  # anywhere
    python benchmarks/gpu_camvid.py DATASET --out camvid-gpu.md       # where the GPU is

Needs the checkout and torch, torchvision, pyarrow, fsspec and pillow alone (torch 2.11 to 2.15),
no network, and under 9 minutes. The whole set lives on the GPU, augmentation included, so that
only the network is measured. Gives mean IU on val after the last step (val chooses nothing),
images a second, their share of the chip's peak (that of a large matrix product in the same
run), and the largest batch. ``--device cpu --backbone squeezenet1_1 --epochs 1`` tries it out.
"""

import argparse
import io
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import fsspec
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a file, from a checkout that nothing installed

from fcn.augment import Augment  # noqa: E402
from fcn.loss import median_frequency_weights, pixel_cross_entropy  # noqa: E402
from fcn.metrics import Scores, confusion  # noqa: E402
from fcn.model import FCN  # noqa: E402

LEARNING_RATE, WEIGHT_DECAY, WARMUP, POWER = 1e-3, 5e-2, 0.03, 0.9
"""AdamW, a short rise and a polynomial fall: the modern recipe's, with more decay for a network
of 134 million weights that starts from nothing."""

MEAN, STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Split:
    """Images uint8 ``N x 3 x H x W`` and label maps uint8 ``N x H x W``, on the device."""

    images: Tensor
    labels: Tensor


def read_split(dataset_url: str, split: str, device: torch.device) -> Split:
    """Decode a split of a dataset that ingest made; its images are of one size."""
    store, path = fsspec.url_to_fs(dataset_url)
    images, labels = [], []
    for part in sorted(store.glob(f"{path}/data/{split}-*.parquet")):
        with store.open(part, "rb") as file:
            table = pq.read_table(file, columns=["image", "label"])
        for row in table.to_pylist():
            images.append(decode(row["image"]["bytes"], "RGB").transpose(2, 0, 1))
            labels.append(decode(row["label"]["bytes"], None))
    return Split(
        torch.from_numpy(np.stack(images)).to(device),
        torch.from_numpy(np.stack(labels)).to(device),
    )


def decode(data: bytes, mode: str | None) -> np.ndarray:
    """An image's pixels, as they are stored or in another mode."""
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert(mode) if mode else image)


def normalise(images: Tensor) -> Tensor:
    """Float, channels last."""
    mean = torch.tensor(MEAN, device=images.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=images.device).view(1, 3, 1, 1)
    return ((images.float() - mean) / std).contiguous(memory_format=torch.channels_last)


class Training:
    """The network, its optimizer, and one step of both."""

    def __init__(
        self,
        args: argparse.Namespace,
        num_classes: int,
        ignore_index: int,
        class_weights: Tensor | None,
    ) -> None:
        torch.manual_seed(args.seed)
        self.device, self.ignore_index, self.num_classes = args.device, ignore_index, num_classes
        self.net = FCN(args.backbone, num_classes, 8).to(
            self.device, memory_format=torch.channels_last
        )
        weights = [p for p in self.net.parameters() if p.ndim > 1]
        others = [p for p in self.net.parameters() if p.ndim <= 1]
        self.optimizer = torch.optim.AdamW(
            [{"params": weights, "weight_decay": WEIGHT_DECAY}, {"params": others}],
            lr=LEARNING_RATE,
            weight_decay=0.0,
        )
        self.class_weights = class_weights

    def scores(self, images: Tensor) -> Tensor:
        """Scores of raw images, in bfloat16 on a GPU."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            scores: Tensor = self.net(normalise(images))
        return scores

    def backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss; its gradient is added."""
        loss = pixel_cross_entropy(
            self.scores(images),
            labels,
            ignore_index=self.ignore_index,
            class_weights=self.class_weights,
        )
        loss.backward()
        return loss.detach()

    def step(self, images: Tensor, labels: Tensor, rate: float) -> Tensor:
        """Change the weights by one batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.backward(images, labels)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.optimizer.step()
        return loss

    @torch.inference_mode()
    def evaluate(self, split: Split) -> Scores:
        """Scores of a split, image by image."""
        self.net.eval()
        total = np.zeros((self.num_classes, self.num_classes), np.int64)
        for image, label in zip(split.images, split.labels, strict=True):
            prediction = self.scores(image[None]).argmax(1)[0].to(torch.uint8)
            total += confusion(label.cpu(), prediction.cpu(), self.num_classes, self.ignore_index)
        self.net.train()
        return Scores(total)


def rate(step: int, num_steps: int) -> float:
    """Factor on the learning rate."""
    return min(1.0, (step + 1) / max(1, WARMUP * num_steps)) * (1 - step / num_steps) ** POWER


def synchronised(device: torch.device) -> float:
    """The clock, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak(device: torch.device) -> float:
    """Floating-point operations a second of a large matrix product, in the training's precision."""
    size, kind = (8192, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    left, right = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    best = math.inf
    for _ in range(10):
        start = synchronised(device)
        left @ right
        best = min(best, synchronised(device) - start)
    return 2 * size**3 / best


def largest_batch(training: Training, split: Split) -> int:
    """The largest power of two that goes through a step in the GPU's memory."""
    size = 1
    try:
        while True:
            index = torch.arange(2 * size, device=split.images.device) % len(split.images)
            training.backward(split.images[index], split.labels[index])
            size *= 2
    except torch.OutOfMemoryError:
        return size
    finally:
        training.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()


def batches(
    split: Split, augment: Augment, args: argparse.Namespace
) -> Iterator[tuple[Tensor, Tensor]]:
    """Augmented batches without end; a new order every epoch."""
    generator = torch.Generator().manual_seed(args.seed)
    while True:
        order = torch.randperm(len(split.images), generator=generator).tolist()
        for first in range(0, len(order) - args.batch_size + 1, args.batch_size):
            pairs = [
                augment(split.images[i], split.labels[i], generator)
                for i in order[first : first + args.batch_size]
            ]
            yield torch.stack([x for x, _ in pairs]), torch.stack([y for _, y in pairs])


def train(training: Training, split: Split, args: argparse.Namespace) -> dict[str, float]:
    """All steps; seconds of augmentation and of the network, and images a second."""
    augment = Augment(tuple(split.images.shape[2:]), training.ignore_index, vary=True)
    steps_per_epoch = len(split.images) // args.batch_size
    num_steps = args.epochs * steps_per_epoch
    stream = batches(split, augment, args)
    augmenting = stepping = 0.0
    training.net.train()
    for step in range(num_steps):
        start = synchronised(training.device)
        images, labels = next(stream)
        ready = synchronised(training.device)
        loss = training.step(images, labels, rate(step, num_steps))
        stepping += synchronised(training.device) - ready
        augmenting += ready - start
        if (step + 1) % max(1, num_steps // 10) == 0:
            print(f"step {step + 1} of {num_steps}: loss {float(loss):.4f}", flush=True)
        if not bool(loss.isfinite()):
            sys.exit(f"error: the loss is {float(loss)} at step {step + 1}")
    images_seen = num_steps * args.batch_size
    return {
        "steps": num_steps,
        "augmenting": augmenting,
        "network": stepping,
        "images_per_second": images_seen / stepping,
        "with_augmentation": images_seen / (stepping + augmenting),
    }


def page(
    args: argparse.Namespace, facts: dict[str, float], scores: Scores, names: list[str]
) -> str:
    """The result as Markdown."""
    device = (
        torch.cuda.get_device_name(args.device)
        if args.device.type == "cuda"
        else platform.machine()
    )
    about = (
        f"FCN-8s on {args.backbone}, from scratch, {args.epochs} epochs of batches of "
        f"{args.batch_size} at {facts['height']:.0f} x {facts['width']:.0f}, "
        f"{'bfloat16' if args.device.type == 'cuda' else 'float32'}, AdamW; scored on val after "
        f"the last step, mean IU over {scores.num_present} of {len(names)} classes. The val split "
        "is one video that also gives 204 training frames: its figures flatter by 8 to 9 points."
    )
    rows = {
        "mean IU on val, %": f"{100 * scores.mean_iu:.2f}",
        "pixel accuracy on val, %": f"{100 * scores.pixel_accuracy:.2f}",
        "images/s, network": f"{facts['images_per_second']:.1f}",
        "images/s, with augmentation": f"{facts['with_augmentation']:.1f}",
        "GFLOP an image, forward and backward": f"{facts['flop'] / 1e9:.0f}",
        "share of the matrix product's rate, %": f"{100 * facts['share']:.1f}",
        "matrix product, TFLOP/s": f"{facts['peak'] / 1e12:.1f}",
        "largest batch": f"{facts['largest_batch']:.0f}" if "largest_batch" in facts else "–",
        "seconds of training": f"{facts['network'] + facts['augmenting']:.0f}",
    }
    return "\n".join(
        [
            "# CamVid from scratch on one GPU",
            "",
            fill(about, 100),
            "",
            "| figure | value |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in rows.items()),
            "",
            "| class | IU |",
            "|---|---|",
            *(
                f"| {name} | {'–' if math.isnan(iu) else f'{100 * iu:.1f}'} |"
                for name, iu in zip(names, scores.iu, strict=True)
            ),
            "",
            f"Command: `python benchmarks/gpu_camvid.py DATASET {shlex.join(sys.argv[2:])}`",
            "",
            f"{device}; Python {platform.python_version()}, torch {torch.__version__}.",
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dataset", help="a dataset that ingest made of CamVid, any fsspec URL")
    parser.add_argument("--backbone", default="vgg16_bn")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--class-weights", action="store_true", help="median frequency")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda"))
    parser.add_argument("--out", type=Path, help="where the page goes; printed in any case")
    args = parser.parse_args()

    store, path = fsspec.url_to_fs(args.dataset)
    info = json.loads(store.cat_file(f"{path}/dataset.json"))
    names = [entry["name"] for entry in info["classes"]]
    splits = {name: read_split(args.dataset, name, args.device) for name in ("train", "val")}
    sample = splits["train"].images[:1], splits["train"].labels[:1]
    weights = None
    if args.class_weights:
        pixels = info["splits"]["train"]["class_pixels"]
        weights = median_frequency_weights(pixels).to(args.device)
    training = Training(args, len(names), info["ignore_index"], weights)
    facts: dict[str, float] = dict(zip(("height", "width"), sample[0].shape[2:], strict=True))
    with FlopCounterMode(display=False) as counter:
        training.backward(*sample)
    training.optimizer.zero_grad(set_to_none=True)
    facts["flop"] = counter.get_total_flops()
    facts["peak"] = peak(args.device)
    if args.device.type == "cuda":
        facts["largest_batch"] = largest_batch(training, splits["train"])
    del training  # the measurements' batch statistics and memory with it
    training = Training(args, len(names), info["ignore_index"], weights)
    facts |= train(training, splits["train"], args)
    facts["share"] = facts["images_per_second"] * facts["flop"] / facts["peak"]
    text = page(args, facts, training.evaluate(splits["val"]), names)
    print(text)
    if args.out:
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
