"""The rate of the whole pipeline against that of the bare network on the same images.

::

    python -m benchmarks.prediction

Bare network: the net of the pipeline's own predictor on ready tensors (decoded, normalised,
float32, channels last), one image at a time, all scores upsampled, and the maximum over the
classes to a uint8 label map, both by PyTorch. It runs in the same threads as the pipeline, an image
a core; on every other image, since it has no start and end to be told from the rate. The
pipeline's predictor makes labels and confidence by a kernel of its own (`fcn.fused_cpu`), which
takes less than PyTorch's upsampling and maximum: so a share of the bare network may pass 100 %. The
predictor alone on decoded images, a core each, on every third one, is therefore told beside it:
what the pipeline would reach if nothing but the network cost anything. Pipeline: shards from
the manifest to committed parts (reading, decoding, network, labels and confidence, encoding,
Parquet, writing) with the default settings, two shards in work, without Prefect. The two alternate
over the same JPEGs; weights are random, which changes no cost but that of masks.

Before the first image and after the last one nothing overlaps. So a run's time is a start and an
end, however many images there are, and a rate. Both follow from runs of six shards and of two of
them, in turn: the rate is that of the four shards between, with all that a shard costs. (Shards of
a real run have `PredictConfig.images_per_shard` images, and cost less of one.) The share of the
bare network is told for both: of the rate, and of the whole round, start and end included.

The S3 endpoint (`benchmarks.s3`) answers after 25 ms, from the same cores: its processor time,
told apart, counts against the pipeline by the clock. Writes ``docs/benchmarks/prediction.md``.
"""

import argparse
import io
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import fcn
from benchmarks.machine import command, describe, processor_seconds
from benchmarks.s3 import bucket, server_seconds
from fcn.images import decode_image
from fcn.input import TORCHVISION
from tasks import stores
from tasks.engine import CORES
from tasks.manifest import Manifest, ModelCard, RunCard, read, write
from tasks.predict_config import PredictConfig
from tasks.shards import ShardReport, write_part_with

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "prediction.md"
NETS = {"vgg16": 12, "resnet18": 36, "squeezenet1_1": 144}
"""Trunks of FCN-8s, and images of a round: a shard has an image for each of two cores, or more."""

SHARDS, FEW = 6, 2
"""Shards of a round, and of a short one."""

COLUMNS = (
    *("trunk", "store", "bare, img/s", "predictor alone", "pipeline, rate", "start and end, s"),
    *("pipeline, whole round", "share of bare: rate, %", "whole round, %", "processor time, %"),
    "share of predictor: rate, %",
    *("read, ms", "decode", "network", "encode", "write", "S3 server"),
)

HEIGHT, WIDTH, NUM_CLASSES = 375, 500, 21
Submit = Callable[[Callable[[], object]], Future[object]]


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of 500 x 375 pixels, about as large as a photograph's: shapes, and some noise."""
    small = rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 6, smooth.shape)
    file = io.BytesIO()
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
    return file.getvalue()


def clock() -> np.ndarray:
    """Seconds by the clock, and of processor time."""
    return np.array([time.perf_counter(), processor_seconds()])


def predictor(backbone: str) -> fcn.Predictor:
    torch.manual_seed(0)
    net = fcn.FCN(backbone, NUM_CLASSES, 8)
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():  # score layers
            torch.nn.init.normal_(layer.weight, std=0.1)
    classes = fcn.Classes.named(map(str, range(NUM_CLASSES)), 255)
    return fcn.Predictor(fcn.Model(net, classes, TORCHVISION), device="cpu")


def ready_tensors(images: Sequence[np.ndarray]) -> list[Tensor]:
    return [TORCHVISION.normalise_interleaved(torch.from_numpy(image)[None]) for image in images]


@torch.inference_mode()
def bare(model: fcn.Predictor, tensors: Sequence[Tensor]) -> None:
    for tensor in tensors:
        model.net(tensor).max(dim=1).indices.byte()  # `argmax` is ten times slower


def seconds_of(jobs: Iterable[Callable[[], object]], submit: Submit) -> np.ndarray:
    """Seconds that tasks take together."""
    start = clock()
    for job in [submit(job) for job in jobs]:
        job.result()
    return clock() - start


def planned(collection: str, output: str, config: PredictConfig) -> Manifest:
    digest = "0" * 64
    classes = fcn.Classes.named(map(str, range(NUM_CLASSES)), 255).to_json()
    model = ModelCard(
        url="model", size=1, etag="", digest=digest, classes=classes, ignore_index=255
    )
    card = RunCard(
        run=0,
        run_digest=digest,
        collection_url=collection,
        images_per_shard=config.images_per_shard,
        model=model,
    )
    write(output, card, stores.list_entries(collection))
    return read(output, 0)


@dataclass
class Case:
    """What the rounds of one network on one store took: seconds by the clock, of the processor."""

    num_images: int
    bare: list[np.ndarray] = field(default_factory=list)
    alone: list[np.ndarray] = field(default_factory=list)
    pipeline: list[np.ndarray] = field(default_factory=list)
    few: list[np.ndarray] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)
    server: float = 0.0

    def line(self, net: str, store: str) -> str:
        bare, alone, pipeline, few = (
            np.array(rounds).T for rounds in (self.bare, self.alone, self.pipeline, self.few)
        )
        share, processor_share = 100 * bare / pipeline
        per_image = (pipeline[0] - few[0]) * SHARDS / ((SHARDS - FEW) * self.num_images)
        fixed = pipeline[0] - per_image * self.num_images
        stages = [
            f"{1e3 * seconds / (self.num_images * len(self.pipeline)):.1f}"
            for seconds in [*self.stages.values(), self.server]
        ]
        cells = [
            *(net, store),
            *(spread(self.num_images / case[0], 2) for case in (bare, alone)),
            *(spread(1 / per_image, 2), spread(fixed, 2)),
            spread(self.num_images / pipeline[0], 2),
            spread(100 * bare[0] / self.num_images / per_image),
            *(spread(share), spread(processor_share)),
            spread(100 * alone[0] / self.num_images / per_image),
        ]
        return f"| {' | '.join([*cells, *stages])} |"


def spread(values: np.ndarray, digits: int = 1) -> str:
    low, middle, high = np.quantile(values, [0, 0.5, 1])
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def pipeline(case: Case, model: fcn.Predictor, manifest: Manifest, config: PredictConfig) -> None:
    """A round, counted into its case."""
    server = server_seconds()
    seconds, reports = segmented(model, manifest, config)
    case.pipeline.append(seconds)
    case.server += server_seconds() - server
    for report in reports:
        case.stages.update(report.stages)


def segmented(
    model: fcn.Predictor, manifest: Manifest, config: PredictConfig
) -> tuple[np.ndarray, list[ShardReport]]:
    """Seconds of a manifest's shards, and what they report."""
    start = clock()
    with ThreadPoolExecutor(config.concurrency) as shards:
        reports = list(
            shards.map(
                lambda number: write_part_with(model, manifest, number, config),
                range(manifest.num_shards),
            )
        )
    seconds = clock() - start
    assert all(report.part.ok == report.part.rows for report in reports), "an image failed"
    return seconds, reports


def measure(net: str, place: str, rounds: int, num_images: int) -> Case:
    """Alternating rounds of the bare network and of the pipeline, after a short one of each."""
    rng = np.random.default_rng(0)
    case, model = Case(num_images), predictor(net)
    some, few = num_images // SHARDS, num_images * FEW // SHARDS
    files = [photograph(rng) for _ in range(num_images)]
    for index, data in enumerate(files):
        for folder in ("images", *(["few"] if index < few else [])):
            stores.write_bytes(f"{place}/{net}/{folder}/{index:04}.jpg", data)
    images = [decode_image(data).pixels for data in files]
    tensors, thirds = ready_tensors(images[::2]), images[::3]
    config = PredictConfig(device="cpu", images_per_shard=some)

    def segment(name: str, number: int) -> tuple[fcn.Predictor, Manifest, PredictConfig]:
        manifest = planned(f"{place}/{net}/{name}", f"{place}/{net}/{name}-{number}", config)
        return model, manifest, config

    seconds_of([partial(bare, model, [tensor]) for tensor in tensors[:few]], CORES.on_one)
    segmented(*segment("few", rounds))
    for number in range(rounds):
        each = [partial(bare, model, [tensor]) for tensor in tensors]
        case.bare.append(seconds_of(each, CORES.on_one) * (num_images / len(tensors)))
        each = [partial(model.predict, [image]) for image in thirds]
        case.alone.append(seconds_of(each, CORES.on_one) * (num_images / len(thirds)))
        pipeline(case, *segment("images", number))
        case.few.append(segmented(*segment("few", number))[0])
    return case


HEAD = f"""# Prediction: the pipeline against the bare network

FCN-8s, 21 classes, JPEGs of 500 x 375, float32. Images a second, and the pipeline's share of the
bare network's rate with an image a core: medians of alternating rounds over the same images, with
the smallest and the largest. A run takes its start and end once, and an image what the rate says;
a whole round is of six small shards, with both. The share of processor time is that of the bare
network in that of the pipeline, its decoding processes included and the S3 server not.
Milliseconds are of work per image, summed over threads, of the network those of all cores; stages
overlap. The S3 server's are processor time.

| {" | ".join(COLUMNS)} |
|{"---|" * len(COLUMNS)}"""

NOTE = """
What these are is defined in `benchmarks/prediction.py`. The bare network's labels are by PyTorch's
upsampling and maximum; predictor and pipeline make them, and the confidence, by a faster kernel, so
that a share of the bare network may pass 100 %. The pipeline pays for the S3 server on the same
cores.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--stores", nargs="+", default=["local", "S3"], choices=["local", "S3"])
    parser.add_argument("--images", type=int, help="of a round, of every net")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    lines, before = [], os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder, bucket() as s3:
        for store, net in [(store, net) for store in args.stores for net in args.nets]:
            case = measure(
                net, folder if store == "local" else s3, args.rounds, args.images or NETS[net]
            )
            lines.append(case.line(net, store))
            print(lines[-1], flush=True)
    load = f"Load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}."
    rounds = f"Rounds: {args.rounds}."
    text = "\n".join([HEAD, *lines, NOTE, rounds, command("prediction"), "", describe(), load, ""])
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
