"""The main job on real images: ingest, train, evaluate, predict, and predict again.

::

    python -m benchmarks.real_data camvid --data DIR --init squeezenet.npz --work WORK
    python -m benchmarks.real_data coco --data DIR --init squeezenet.npz --work WORK --s3

``--s3`` copies the data to a bucket of a local S3 server (moto) and does everything there.
Writes ``docs/benchmarks/real-data-NAME.md``.
"""

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from textwrap import fill
from typing import Any

import boto3
import fsspec
from moto.server import ThreadedMotoServer

from benchmarks.machine import describe
from fcn.recipes import TrainConfig
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.predict import predict
from flows.train import train
from tasks import stores
from tasks.dataset import read_info
from tasks.pipeline import Places
from tasks.runs import CONFIG_NAME, Run

DOCS = Path(__file__).resolve().parents[1] / "docs" / "benchmarks"


@dataclass
class Clock:
    """Seconds of each step, by the clock."""

    seconds: dict[str, float] = field(default_factory=dict)

    def time(self, name: str, step: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = step()
        self.seconds[name] = time.perf_counter() - start
        return result


def settings(name: str, init: str, epochs: int | None) -> dict[str, Any]:
    """Training settings of a data set."""
    crops = {"camvid": (256, 320), "coco": (320, 320)}
    return {
        "backbone": "squeezenet1_1",
        "stride": 4 if name == "camvid" else 8,
        "init": init,
        "epochs": epochs or {"camvid": 45, "coco": 20}[name],
        "batch_size": 8,
        "crop_size": crops[name],
        "num_workers": 1,
        "evaluate_every": 15,
        "seed": 0,
    }


def collection(name: str, source: str) -> str:
    """The images to segment: CamVid's val images, all of COCO's."""
    return f"{source}/{'val' if name == 'camvid' else 'JPEGImages'}"


NOTES = {
    "camvid": "The val split is one video that also gives 204 training frames: its figures flatter "
    "by 8 to 9 points.",
    "coco": "The split is drawn by the seed; cow and sheep do not occur. A hundred photographs for "
    "21 classes are a test of the pipeline, not of the network.",
}
"""What a reader of the figures has to know about a data set."""


def run(name: str, source: str, work: str, init: str, epochs: int | None) -> tuple[Clock, Any]:
    """The four flows in turn, and the last one again."""

    clock, places = Clock(), Places(work)
    config = TrainConfig(**settings(name, init, epochs))
    clock.time("ingest", lambda: ingest(source, places.dataset_url))
    trained = clock.time("train", lambda: train(places.dataset_url, places.run_url, config))
    clock.time(
        "evaluate", lambda: evaluate(places.dataset_url, trained.model_url, places.report_url)
    )
    images = collection(name, source)
    for step in ("predict", "predict again"):
        clock.time(step, lambda: predict(images, trained.model_url, places.output_url))
    return clock, places


def page(name: str, clock: Clock, places: Any, s3: bool) -> str:
    """The result as Markdown."""

    info = read_info(places.dataset_url)
    config = json.loads(stores.read_bytes(stores.join(places.run_url, CONFIG_NAME)))
    height, width = config["crop_size"]
    last = [row for row in Run(places.run_url).read_metrics() if "mean_iu" in row][-1]
    rows = [row for row in Run(places.run_url).read_metrics() if "loss" in row]
    rate = sum(row["images_per_second"] for row in rows) / len(rows)
    waited = sum(row["waited"] for row in rows) / len(rows)
    classes = [
        f"| {label} | {'–' if iu is None else f'{100 * iu:.1f}'} |"
        for label, iu in zip(info.classes.names, last["iu"], strict=True)
    ]
    splits = ", ".join(f"{split.name} {split.rows}" for split in info.splits.values())
    about = (
        f"FCN-{config['stride']}s on {config['backbone']} from ImageNet weights, "
        f"{config['epochs']} epochs of crops {height} x {width}; {splits} images, "
        f"{len(info.classes)} classes, scored on val at native resolution."
    )
    training = (
        f"Training: {last['step']:,} steps, {rate:.1f} images/s; the network waited for its batch "
        f"{100 * waited:.0f} % of the time. {NOTES[name]}"
    )
    return "\n".join(
        [
            f"# {name} on {'an S3 endpoint' if s3 else 'local files'}",
            "",
            fill(about, 100),
            "",
            "| pixel accuracy | mean accuracy | mean IU | frequency-weighted IU |",
            "|---|---|---|---|",
            "| "
            + " | ".join(
                f"{100 * last[figure]:.2f}"
                for figure in (
                    "pixel_accuracy",
                    "mean_accuracy",
                    "mean_iu",
                    "frequency_weighted_iu",
                )
            )
            + " |",
            "",
            "| step | seconds |",
            "|---|---|",
            *(f"| {step} | {seconds:.1f} |" for step, seconds in clock.seconds.items()),
            "",
            fill(training, 100),
            "",
            "| class | IU |",
            "|---|---|",
            *classes,
            "",
            f"Command: `python -m benchmarks.real_data {shlex.join(sys.argv[1:])}`",
            "",
            describe(),
            "",
        ]
    )


@contextmanager
def bucket(data: Path, init: str) -> Iterator[tuple[str, str, str]]:
    """Source, work and init URLs in a bucket of a local S3 server that holds the data."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }
    boto3.client("s3").create_bucket(Bucket="data")
    fsspec.filesystem("s3").put(str(data), "data/source", recursive=True)
    fsspec.filesystem("s3").put_file(init, "data/init.npz")
    try:
        yield "s3://data/source", "s3://data/work", "s3://data/init.npz"
    finally:
        server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=["camvid", "coco"])
    parser.add_argument("--data", type=Path, required=True, help="folder of the data set")
    parser.add_argument("--init", required=True, help="SqueezeNet's ImageNet weights (.npz)")
    parser.add_argument("--work", required=True, help="where everything goes; empty at first")
    parser.add_argument("--epochs", type=int, help="passes over train")
    parser.add_argument("--s3", action="store_true", help="do it all on a local S3 server")
    args = parser.parse_args()
    if args.s3:
        with bucket(args.data, args.init) as (source, work, init):
            text = page(args.name, *run(args.name, source, work, init, args.epochs), True)
    else:
        text = page(
            args.name, *run(args.name, str(args.data), args.work, args.init, args.epochs), False
        )
    target = DOCS / f"real-data-{args.name}{'-s3' if args.s3 else ''}.md"
    target.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
