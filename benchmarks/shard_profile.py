"""Where the processor time of a shard goes: the ten functions that take most of it.

::

    python -m benchmarks.shard_profile

py-spy looks two hundred times a second at every thread of a process that segments shards, as
`benchmarks.prediction` does (FCN-8s, JPEGs of 500 x 375, local files, without Prefect), and at its
decoding processes. A function's share is that of the looks that found it innermost in Python: what
it calls in C counts as its own. Looks at threads that wait are left out. Milliseconds are
its share of all processor time per image. Writes ``docs/benchmarks/profile.md``.
"""

import argparse
import json
import re
import select
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from benchmarks.machine import command, describe
from benchmarks.prediction import Case, photograph, pipeline, planned, predictor
from tasks import stores
from tasks.predict_config import PredictConfig

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "profile.md"
NETS = {"vgg16": 4, "squeezenet1_1": 64}
"""Trunks of FCN-8s, and images of a round, four shards."""

LOOKS = 200
"""A second."""

WAITING = (
    *("Condition.wait ", "Event.wait ", "_worker ", "_wait_for_tstate_lock ", "Thread.join "),
    *("receive_into (fcn/wire", "_fill (fcn/decoders", "thread ", "process ", "SimpleQueue.get "),
    *("select ", "_recv_bytes ", "wait_for ", "serve (fcn/decoding"),
)
"""Where threads wait for others: py-spy cannot tell everywhere that they do."""

WHAT = {
    "_conv_forward": "convolutions of the network, by oneDNN: the work itself",
    "_max_pool2d": "poolings of the network",
    "relu": "activations of the network, in place",
    "_relu": "activations of the network, in place",
    "forward": "concatenations and sums of maps in the network",
    "fused_winners": "upsampling, class and probability of every pixel, by the compiled kernel",
    "_matrix": "weights of the upsampling inside the network",
    "read_row_group": "the shard's images, read from the manifest",
    "submit": "tasks given to threads",
    "notify": "threads woken for what is ready for them",
    "_call_impl": "layers called by PyTorch",
    "_choose": "scores of the heads, and their labels",
    "normalise_interleaved": "pixels to normalised floats",
    "normalise_row": "pixels to normalised floats",
    "_filtered": "mask to PNG: differences of rows, and zlib",
    "count_labels": "pixels of each class",
    "<listcomp>": "pixels of each class, a strip at a time",
    "_answer": "JPEG decoding by simplejpeg, in a process of its own, and sending of the pixels",
    "decode_jpeg": "JPEG decoding by simplejpeg, in a process of its own",
    "_jpeg": "JPEG decoding by simplejpeg, in a process of its own",
    "encode": "the part as Parquet, and its digest",
    "_written_beside": "the part to the disk, synchronised",
    "_sync_folder": "the part's name to the disk, synchronised",
    "acquire": "threads that ask for a core or a place",
    "_score": "an image into the network, its scores out",
    "read_objects": "reading of the files",
    "_read_one": "reading of the files",
    "__rsub__": "a scalar less a map: signs turned",
}
"""What the functions do."""


def work(net: str, num_images: int) -> None:
    """Segment shards until the input ends; a line at the start, and one with what it came to."""
    rng, model = np.random.default_rng(0), predictor(net)
    config = PredictConfig(device="cpu", images_per_shard=max(1, num_images // 4))
    with tempfile.TemporaryDirectory() as folder:
        for index in range(num_images):
            stores.write_bytes(f"{folder}/images/{index:04}.jpg", photograph(rng))
        case = Case(num_images)
        for number in range(10**6):
            if number == 1:
                print("ready", flush=True)
                case = Case(num_images)
            manifest = planned(f"{folder}/images", f"{folder}/out-{number}", config)
            pipeline(case, model, manifest, config)
            if number and select.select([sys.stdin], [], [], 0)[0]:
                break
    clock, processor = np.sum(case.pipeline, axis=0) / (num_images * len(case.pipeline))
    print(json.dumps({"clock": clock, "processor": processor}), flush=True)


def looked_at(net: str, num_images: int, seconds: float) -> tuple[Counter[str], dict[str, float]]:
    """How often each function was found at work, and seconds per image."""
    code = [sys.executable, "-m", "benchmarks.shard_profile", "--work", net]
    code += ["--images", str(num_images)]
    with (
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(code, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as worker,
    ):
        assert worker.stdin
        assert worker.stdout
        if worker.stdout.readline().strip() != "ready":
            raise RuntimeError("the process that is looked at ended before it was ready")
        file = Path(folder) / "looks"
        py_spy = str(Path(sys.executable).with_name("py-spy"))
        looking = [py_spy, "record", "--pid", str(worker.pid), "--subprocesses"]
        looking += ["--rate", str(LOOKS), "--duration", str(int(seconds)), "--format", "raw"]
        subprocess.run([*looking, "--output", str(file)], check=True, capture_output=True)
        worker.stdin.close()
        figures: dict[str, float] = json.loads(worker.stdout.readline())
        return Counter(dict(_looks(file.read_text("utf-8")))), figures


def _looks(text: str) -> Iterator[tuple[str, int]]:
    found = Counter[str]()
    for line in text.splitlines():
        stack, _, count = line.rpartition(" ")
        frame = stack.split(";")[-1]
        if not frame.startswith(WAITING) and "(" in frame:
            found[re.sub(r":\d+\)$", ")", frame)] += int(count)
    yield from found.items()


def table(net: str, looks: Counter[str], figures: dict[str, float]) -> list[str]:
    """The ten functions of a network's shards."""
    total = looks.total()
    clock, processor = (f"{1e3 * figures[name]:.1f} ms" for name in ("clock", "processor"))
    lines = [
        f"## {net}",
        "",
        f"An image takes {clock} by the clock, {processor} of processor time; {total:,} looks.",
        "",
        "| function | share, % | ms per image | what it is |",
        "|---|---|---|---|",
    ]
    for frame, count in looks.most_common(10):
        share = count / total
        name = frame.partition(" (")[0].rpartition(".")[2]
        lines.append(
            f"| `{frame}` | {100 * share:.1f} | {1e3 * share * figures['processor']:.2f} | "
            f"{WHAT.get(name, '')} |"
        )
    rest = 1 - sum(count for _, count in looks.most_common(10)) / total
    lines.append(f"| all others | {100 * rest:.1f} | {1e3 * rest * figures['processor']:.2f} | |")
    return [*lines, ""]


def page(tables: Sequence[str]) -> str:
    head = """# Profile of a shard

FCN-8s, 21 classes, JPEGs of 500 x 375, PyTorch, local files. The ten functions that take most
processor time, decoding processes included; how they were found is told in
`benchmarks/shard_profile.py`. py-spy stops the processes while it looks, two hundred times a
second: by the clock an image takes about twice as long as it does otherwise.
"""
    return "\n".join([head, *tables, command("shard_profile"), "", describe(), ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--seconds", type=float, default=10, help="of looking at each network")
    parser.add_argument("--images", type=int, help="of a round, of every network")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    parser.add_argument("--work", metavar="NET", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.images)
        return
    tables: list[str] = []
    for net in args.nets:
        tables += table(net, *looked_at(net, args.images or NETS[net], args.seconds))
    text = page(tables)
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
