"""What planning, resuming and recognising a finished output cost, by the number of keys.

::

    python -m benchmarks.growth --work DIR --keys 1000 10000 100000 1000000

The collection is a Parquet list of that many URLs in random order; no image is there or read.
The finished output comes from an honest null model: its parts are written by the project's
own functions, with a constant label map as the mask of every image. Linux only, for the peak
of memory of each step. Writes ``docs/benchmarks/growth.md`` and its figure.
"""

import argparse
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.axes import Axes
from matplotlib.figure import Figure

import fcn
from benchmarks.machine import command, describe
from fcn.input import TORCHVISION
from tasks import part_file, parts, stores
from tasks.manifest import Manifest
from tasks.manifest import read as read_manifest
from tasks.part_file import Row
from tasks.plan import Plan, plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import PredictSummary, summarise

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "growth.md"
FIGURE = PAGE.parents[1] / "images" / "growth.png"
CONFIG = PredictConfig(images_per_shard=1000)
CLASSES = fcn.Classes(("nothing", "something"), ((0, 0, 0), (255, 255, 255)))


def make_list(work: Path, num: int) -> None:
    """A list of URLs of 60 to 70 characters in random order, and a small model."""
    work.mkdir(parents=True)
    numbers = list(range(num))
    random.Random(0).shuffle(numbers)
    urls = [
        f"s3://bucket-of-photographs/year={n % 20 + 2000}/camera-{n % 97:02d}/image-{n:09d}.jpg"
        for n in numbers
    ]
    pq.write_table(pa.table({"url": urls}), work / "urls.parquet")
    net = fcn.FCN("squeezenet1_1", len(CLASSES), 8)
    fcn.save(fcn.Model(net, CLASSES, TORCHVISION), work / "model.safetensors")


def plan(work: Path) -> int:
    """Plan; returns the number of images to be done."""
    urls, model = f"{work}/urls.parquet", f"{work}/model.safetensors"
    return plan_run(urls, model, f"{work}/out", CONFIG).num_missing


def write_parts(work: Path) -> None:
    """The parts of a null model: one constant label map for every image."""
    manifest = read_manifest(f"{work}/out", 0)
    mask = fcn.encode_mask(np.zeros((375, 500), np.uint8), CLASSES.palette)
    for number in range(manifest.num_shards):
        write_part(manifest, number, mask)


def summary(work: Path) -> PredictSummary:
    """What a run says at its end that found all parts there but the first."""
    plan = Plan(manifest=read_manifest(f"{work}/out", 0), missing=(0,), num_deleted=0)
    return summarise(plan, reports=(), seconds=1.0)


def write_part(manifest: Manifest, number: int, mask: bytes) -> None:
    rows = [
        Row(
            entry=entry,
            status="ok",
            height=375,
            width=500,
            mask=mask,
            mask_path=f"{entry.key}.png",
            class_pixels=[375 * 500, 0],
            confidence=1.0,
        )
        for entry in manifest.shard(number)
    ]
    card = part_file.summarise(rows, run=0, number=number, run_digest=manifest.card.run_digest)
    data = part_file.encode(rows, card, CONFIG.mask_format)
    stores.create_bytes(parts.part_url(manifest.output_url, 0, number), data)


HEAD = """# Planning by the number of keys

![Seconds, and processor time per key, by the number of keys](../images/growth.png)

| step | keys | seconds | CPU seconds | CPU µs per key | MiB before | MiB at the peak |
|---|---|---|---|---|---|---|"""

NOTES = """
- **plan**: a Parquet list of URLs in random order, sorted, checked and written as the manifest;
  with loading the model (SqueezeNet).
- **nothing to do**: the same list against a finished output of one run; with and without its
  index (without, the footer of every part is read).
- **write the index**: off the footers of all parts.
- **summary**: of a run that found all parts there but one: the index, and of every part the
  columns that tell its least confident images.
- **resume**: one part of the finished output is missing; the list is not read.

The parts come from a null model: a constant label map for every image, through the project's own
functions. 1,000 images per shard; output on a local disk. All steps run in one process, the small
collections first; most of its memory, shared libraries among it, is that of the imports (torch).
"""

STEPS: dict[str, Callable[[Path, int], Any]] = {
    "make the list": make_list,
    "plan": lambda work, _num: plan(work),
    "write parts": lambda work, _num: write_parts(work),
    "nothing to do, no index": lambda work, _num: plan(work),
    "write the index": lambda work, _num: parts.write_index(f"{work}/out", CLASSES),
    "nothing to do": lambda work, _num: plan(work),
    "summary": lambda work, _num: summary(work),
    "remove a part": lambda work, _num: stores.remove(parts.part_url(f"{work}/out", 0, 0)),
    "resume": lambda work, _num: plan(work),
}
SHOWN = (
    "plan",
    "nothing to do, no index",
    "write the index",
    "nothing to do",
    "summary",
    "resume",
)


def measured(step: str, work: Path, num: int) -> dict[str, float]:
    """Seconds by the clock and of the processor, and MiB of memory before and at the peak."""
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak starts anew
    before, cpu, start = memory("VmRSS"), time.process_time(), time.perf_counter()
    STEPS[step](work, num)
    result = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "before": before,
        "peak": memory("VmHWM"),
    }
    print(f"{num:,} {step}: {result}", flush=True)
    return result


def memory(name: str) -> float:
    """A figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def page(rows: dict[tuple[str, int], dict[str, float]]) -> str:
    steps = sorted(rows, key=lambda at: (SHOWN.index(at[0]), at[1]))
    lines = [
        f"| {step} | {num:,} | {row['seconds']:.1f} | {row['cpu']:.1f} | "
        f"{1e6 * row['cpu'] / num:.1f} | {row['before']:.0f} | {row['peak']:.0f} |"
        for step, num in steps
        for row in [rows[step, num]]
    ]
    return "\n".join([HEAD, *lines, NOTES, command("growth"), "", describe(), ""])


def figure(rows: dict[tuple[str, int], dict[str, float]]) -> Figure:
    """Seconds by the clock, and processor time per key, by the number of keys."""
    drawn = Figure(figsize=(9, 3.6), layout="constrained")
    seconds, per_key = drawn.subplots(1, 2)
    nums = sorted({num for _, num in rows})
    for step in SHOWN:
        found = [rows[step, num] for num in nums]
        seconds.plot(nums, [row["seconds"] for row in found], marker="o", label=step)
        microseconds = [1e6 * row["cpu"] / num for row, num in zip(found, nums, strict=True)]
        per_key.plot(nums, microseconds, marker="o", label=step)
    seconds.set_ylabel("seconds")
    per_key.set_ylabel("processor µs per key")
    axes: Axes
    for axes in (seconds, per_key):
        axes.set(xscale="log", yscale="log", xlabel="keys")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    drawn.legend(*seconds.get_legend_handles_labels(), loc="outside right center", frameon=False)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="where everything goes")
    parser.add_argument("--keys", type=int, nargs="+", default=[1000, 10_000, 100_000, 1_000_000])
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    parser.add_argument("--figure", type=Path, default=FIGURE, help="where its figure is written")
    args = parser.parse_args()
    rows = {
        (step, num): measured(step, args.work / str(num), num)
        for num in args.keys
        for step in STEPS
    }
    shown = {at: row for at, row in rows.items() if at[0] in SHOWN}
    text = page(shown)
    args.page.write_text(text, encoding="utf-8")
    figure(shown).savefig(args.figure, dpi=110)
    print(text)


if __name__ == "__main__":
    main()
