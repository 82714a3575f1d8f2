"""FCN-8s on one GPU: the chip's floor, the bare network, labels, and JPEGs to masks.

::

    python benchmarks/gpu_prediction.py --out docs/benchmarks/gpu-prediction.md

Needs the checkout and torch, torchvision, pyarrow, numpy and pillow alone (torch 2.11 to 2.15),
no network, and under 9 minutes. First the fused kernel is compared with the plain path; a
difference ends it. Then, in this order:

- the floor: what a large matrix product and a large copy reach on this chip, in this run;
- the bare network, images on the GPU already, to labels there: eager, and from a CUDA graph;
- upsampling and labels alone: all scores, strips of rows, the fused kernel;
- end to end: JPEGs of a folder, decoded by processes of their own on all cores, through
  `fcn.streams` to PNG masks in one Parquet file;
- cuDNN's search for algorithms, and torch.compile, as far as the time goes.

Weights are random, which changes no cost but that of masks. ``--device cpu --backbone
squeezenet1_1 --height 40 --width 56 --images 6 --batch-sizes 2`` tries it out.
"""

import argparse
import itertools
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from textwrap import fill

import torch
import torchvision
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run as a file, from a checkout that nothing installed

from benchmarks.gpu_end_to_end import EndToEnd  # noqa: E402
from fcn import images as decoding  # noqa: E402
from fcn.geometry import CoordinateMap  # noqa: E402
from fcn.graphs import Graph  # noqa: E402
from fcn.input import TORCHVISION  # noqa: E402
from fcn.model import FCN  # noqa: E402
from fcn.streams import Labeller, find_fused, on_gpu, winners_by_strip  # noqa: E402
from fcn.upsample import Upscore  # noqa: E402
from fcn.winners import winners  # noqa: E402

NUM_CLASSES = 21
COMPILE_BEFORE = 300.0
"""Seconds after which torch.compile is not begun: it takes up to two minutes."""

Table = tuple[str, list[str], list[list[str]]]
"""A title, the heads of the columns, and the rows."""


def synchronised(device: torch.device) -> float:
    """The clock, once the device has done its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(run: Callable[[], object], device: torch.device, least: float = 0.3) -> float:
    """Median seconds of a call, over five rounds of at least ``least`` seconds in all."""
    for _ in range(3):
        run()
    start = synchronised(device)
    run()
    calls = max(1, math.ceil(least / 5 / max(1e-6, synchronised(device) - start)))
    rounds = []
    for _ in range(5):
        start = synchronised(device)
        for _ in range(calls):
            run()
        rounds.append((synchronised(device) - start) / calls)
    return statistics.median(rounds)


def floor(device: torch.device) -> tuple[float, float]:
    """Operations a second of a matrix product in the network's precision; bytes a second."""
    gpu = device.type == "cuda"
    size, dtype, room = (8192, torch.bfloat16, 1 << 30) if gpu else (512, torch.float32, 1 << 24)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    product = seconds(lambda: left @ right, device)
    source = torch.zeros(room, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copied = seconds(lambda: target.copy_(source), device)
    return 2 * size**3 / product, 2 * room / copied


def layer(num_classes: int) -> Upscore:
    """FCN-8s' last upsampling."""
    return Upscore(num_classes, CoordinateMap(8, 3.5), CoordinateMap(), replicate_border=True)


def check_fused(device: torch.device) -> str:
    """Compare the fused kernel with the plain path.

    Raises:
        SystemExit: they differ elsewhere than at ties.
    """
    fused = find_fused(device)
    if fused is None:
        return "There is no fused kernel here: labels are read off strip by strip."
    num_pixels = num_ties = 0
    torch.manual_seed(0)
    for classes, rows, columns, dtype in itertools.product(
        (1, 2, 21, 300), (1, 7, 47), (1, 63), (torch.float32, torch.bfloat16)
    ):
        upscore = layer(classes)
        score = 4 * torch.randn(2, classes, rows, columns, device=device).to(dtype)
        window = upscore.crop, upscore.crop, 8 * rows - 3, 8 * columns - 1
        top, left, height, width = window
        plain = upscore(score.float())[..., top : top + height, left : left + width].contiguous()
        two = plain.topk(min(2, classes), dim=1).values
        tied = (two[:, 0] - two[:, -1] < 1e-4) & (classes > 1)
        labels, sums = winners(plain)
        found, found_sums = fused(upscore, score, *window)
        differ = found.int() != labels.int()
        if bool((differ & ~tied).any()) or not torch.allclose(sums, found_sums, rtol=1e-4):
            sys.exit(
                f"error: the fused kernel differs for {classes} classes of {tuple(score.shape)}"
            )
        num_pixels += differ.numel()
        num_ties += int(differ.sum())
    return (
        f"The fused kernel gives the labels of the plain path in {num_pixels:,} pixels but for "
        f"{num_ties:,} ties (scores within 0.0001 of each other), and its sums of probabilities."
    )


class Bench:
    """The network and its images, and what is measured of them."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device, self.size = args.device, (args.height, args.width)
        net = FCN(args.backbone, NUM_CLASSES, 8).eval()
        for part in [net.score_fr, *(fuse.score_pool for fuse in net.fuse.values())]:
            torch.nn.init.normal_(part.weight, std=0.05)
        self.net = on_gpu(net, args.device, "auto")
        self.labeller = Labeller(self.net, TORCHVISION, [NUM_CLASSES])
        self.window = (0, 0, *self.size)
        self.batch_sizes: list[int] = args.batch_sizes
        self.peak, self.bandwidth = floor(args.device)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            self.labeller.score(self.pixels(1))
        self.flop = counter.get_total_flops()
        self.rates: dict[int, float] = {}
        self.fastest = self.batch_sizes[0]

    def pixels(self, num: int) -> Tensor:
        """Random images on the device."""
        return torch.randint(0, 256, (num, *self.size, 3), dtype=torch.uint8, device=self.device)

    def label(self, pixels: Tensor) -> list[Tensor]:
        """Labels and sums of a batch."""
        return self.labeller(pixels, self.window)

    def share(self, rate: float) -> str:
        """Of the floor that the matrix product sets, in percent."""
        return f"{100 * rate * self.flop / self.peak:.1f}"

    @torch.inference_mode()
    def bare(self) -> Table:
        """Images a second on the device, by the batch size; eager and replayed."""
        heads = ["batch", "eager, img/s", "graph, img/s", "share of the floor, %", "GB"]
        rows = []
        for num in self.batch_sizes:
            pixels = self.pixels(num)
            if self.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(self.device)
            eager = num / seconds(partial(self.label, pixels), self.device)
            best, replayed, memory = eager, "–", "–"
            if self.device.type == "cuda":
                memory = f"{torch.cuda.max_memory_allocated(self.device) / 1e9:.1f}"
                best = num / self.replay(pixels)
                replayed = f"{best:.0f}"
            self.rates[num] = max(eager, best)
            rows.append([str(num), f"{eager:.0f}", replayed, self.share(max(eager, best)), memory])
        self.fastest = max(self.rates, key=lambda num: self.rates[num])
        return "Bare network, pixels to labels on the device", heads, rows

    def replay(self, pixels: Tensor) -> float:
        """Seconds of a batch from a CUDA graph, its images copied in and its labels out."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.label(pixels)
            graph = Graph(self.label, tuple(pixels.shape), stream, torch.cuda.graph_pool_handle())
            return seconds(lambda: graph(pixels), self.device)

    @torch.inference_mode()
    def labels(self) -> Table:
        """Milliseconds a batch of upsampling and choosing, three ways."""
        heads = ["classes", "batch", "all scores, ms", "strips, ms", "fused, ms", "all scores, GB"]
        rows, fused = [], find_fused(self.device)
        height, width = self.size
        for classes, num in itertools.product((21, 150), (1, self.fastest)):
            upscore = layer(classes)
            cells = -(-height // 8), -(-width // 8)
            score = torch.randn(num, classes, *cells, device=self.device)
            score = score.to(self.labeller.dtype)
            top = upscore.crop
            ways: list[Callable[[], object]] = [
                lambda u=upscore, s=score, t=top: winners(
                    u(s)[..., t : t + height, t : t + width].float().contiguous()
                ),
                lambda u=upscore, s=score, t=top, c=classes: winners_by_strip(
                    u, s, [c], (t, t, height, width)
                ),
            ]
            if fused is not None:
                ways.append(lambda u=upscore, s=score, t=top: fused(u, s, t, t, height, width))
            times = [f"{1e3 * seconds(way, self.device):.3f}" for way in ways]
            times += ["–"] * (3 - len(times))
            size = f"{4e-9 * num * classes * height * width:.2f}"
            rows.append([str(classes), str(num), *times, size])
        return "Upsampling and labels alone", heads, rows

    def searched(self) -> Table:
        """The fastest batch with cuDNN trying all its algorithms."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=True), torch.inference_mode():
            start = synchronised(self.device)
            pixels = self.pixels(self.fastest)
            self.label(pixels)
            first = synchronised(self.device) - start
            return self._alone(
                "With cuDNN searching its algorithms, from a graph", first, self.replay(pixels)
            )

    def compiled(self) -> Table:
        """The fastest batch with torch.compile."""
        run = torch.compile(self.labeller.score, dynamic=False)
        pixels = self.pixels(self.fastest)
        with torch.inference_mode():
            start = synchronised(self.device)
            run(pixels)
            first = synchronised(self.device) - start
            spent = seconds(lambda: self.labeller.choose(run(pixels), self.window), self.device)
            return self._alone("With torch.compile", first, spent)

    def _alone(self, title: str, first: float, spent: float) -> Table:
        rate = self.fastest / spent
        heads = ["batch", "first one, s", "img/s", "share of the floor, %"]
        return title, heads, [[str(self.fastest), f"{first:.1f}", f"{rate:.0f}", self.share(rate)]]

    def end_to_end(self, num: int) -> Table:
        """JPEGs of a folder to masks in a Parquet file, with all cores decoding."""
        sizes = sorted({self.batch_sizes[0], 8, self.fastest} & {*self.batch_sizes})
        whole = EndToEnd(self.net, self.device, self.size, NUM_CLASSES)
        alone, rates = whole.rates(num, sizes)
        heads = ["batch", "img/s", "share of bare, %", "decoding alone, img/s"]
        rows = [
            [str(size), f"{rate:.0f}", f"{100 * rate / self.rates[size]:.1f}", f"{alone:.0f}"]
            for size, rate in rates.items()
        ]
        return "End to end, local JPEGs to PNG masks in Parquet", heads, rows


def markdown(table: Table) -> list[str]:
    """A table as lines of Markdown, below its title."""
    title, heads, rows = table
    lines = [heads, ["---"] * len(heads), *rows]
    return [f"## {title}", "", *("| " + " | ".join(line) + " |" for line in lines), ""]


def hardware(device: torch.device) -> str:
    """What it ran on."""
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    jpeg = "Pillow" if decoding.simplejpeg is None else "simplejpeg"
    triton = "its fused kernel" if find_fused(device) else "no fused kernel"
    return (
        f"{gpu}, {os.cpu_count()} cores ({platform.machine()}); Python "
        f"{platform.python_version()}, torch {torch.__version__}, torchvision "
        f"{torchvision.__version__}, {triton}; JPEGs decoded by {jpeg}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--height", type=int, default=375)
    parser.add_argument("--width", type=int, default=500)
    parser.add_argument("--images", type=int, default=20_000, help="of the end-to-end run")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--device", type=torch.device, default=torch.device("cuda", 0))
    parser.add_argument("--out", type=Path, help="where the page goes; printed in any case")
    args = parser.parse_args()

    start = time.perf_counter()
    checked = check_fused(args.device)
    print(checked, flush=True)
    bench = Bench(args)
    about = (
        f"FCN-8s on {args.backbone}, {args.width} x {args.height}, {NUM_CLASSES} classes, "
        f"{str(bench.labeller.dtype).removeprefix('torch.')}, {bench.flop / 1e9:.1f} GFLOP an "
        f"image. The floor: {bench.peak / 1e12:.1f} TFLOP/s of a large matrix product, that is "
        f"{bench.peak / bench.flop:.0f} images/s; a copy moves {bench.bandwidth / 1e12:.2f} TB/s. "
        "Medians of five rounds."
    )
    page = ["# Prediction on one GPU", "", fill(about, 100), "", fill(checked, 100), ""]
    command = shlex.join(["python", "benchmarks/gpu_prediction.py", *sys.argv[1:]])

    def write(table: Table) -> None:
        """Add to the page; it stands even if a later step fails."""
        lines = markdown(table)
        print("\n".join(lines), flush=True)
        page.extend(lines)
        spent = f"{hardware(args.device)} {time.perf_counter() - start:.0f} s in all."
        text = "\n".join([*page, f"Command: `{command}`", "", fill(spent, 100), ""])
        if args.out:
            args.out.write_text(text, encoding="utf-8")

    print("\n".join(page), flush=True)
    write(bench.bare())
    write(bench.labels())
    write(bench.end_to_end(args.images))
    if args.device.type == "cuda":
        write(bench.searched())
        if time.perf_counter() - start < COMPILE_BEFORE:
            write(bench.compiled())
    print(f"{hardware(args.device)}\n{command}")


if __name__ == "__main__":
    main()
