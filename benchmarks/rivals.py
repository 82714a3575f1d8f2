"""Prediction, end to end, beside what else one would use for it.

::

    python -m benchmarks.rivals

The same JPEGs of 500 x 375 and, but for torchvision's, the same weights, in turn:

- **bare network**: ready tensors in memory, labels out; see `benchmarks.prediction`.
- **fcn-flows**: from the manifest to committed parts, without Prefect, by the backend that
  ``backend="auto"`` takes and by PyTorch.
- **plain loop**: what a good engineer would write in an hour: fsspec, Pillow, a float tensor,
  the network in eager PyTorch, argmax, a PNG by Pillow, one object per mask.
- **Ray Data**: ``read_images``, ``map_batches`` with an actor a core, which holds the network and
  gives it one thread, ``write_parquet`` with a PNG per row. Its rate is that between the first
  image's end in an actor and the last one's: neither starting cluster and actors nor the last
  write counts.
- **torchvision fcn_resnet50** in the plain loop: another, dilated network, for orientation; on
  local files only.

What goes image by image at a steady rate takes a share of a round's images. The S3 endpoint
(`benchmarks.s3`) answers after 25 ms and takes a little processor time from the same cores. Writes
``docs/benchmarks/rivals.md``.
"""

import argparse
import io
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow.fs as pa_fs
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from torch import nn
from torchvision.models.segmentation import fcn_resnet50

import fcn
from benchmarks.machine import command, describe
from benchmarks.prediction import (
    NUM_CLASSES,
    bare,
    photograph,
    planned,
    predictor,
    ready_tensors,
    seconds_of,
    spread,
)
from benchmarks.s3 import bucket
from fcn.classes import voc_palette
from fcn.images import decode_image
from fcn.input import TORCHVISION
from tasks import stores
from tasks.engine import CORES
from tasks.predict_config import PredictConfig
from tasks.shards import write_part_with

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "rivals.md"
IMAGES = {"squeezenet1_1": 48, "vgg16": 4}
"""FCN-8s on these, and images of a round."""

CASES = {"local": ("squeezenet1_1", "vgg16"), "S3": ("squeezenet1_1",)}
"""Where, and which: VGG16 waits for nothing but itself, wherever its images are."""

WARM = {"squeezenet1_1": 8, "vgg16": 2}
"""Images of the first round, which is not counted."""

PALETTE = [value for colour in voc_palette(NUM_CLASSES) for value in colour]

Net = Callable[[torch.Tensor], torch.Tensor]


class Round:
    """One round: where the images are, and where the masks go."""

    def __init__(self, place: str, number: int, keys: Sequence[str]) -> None:
        self.place, self.keys = place, keys
        self.images, self.out = f"{place}/images", f"{place}/out-{number}"


def fcn_flows(model: fcn.Predictor, work: Round) -> float:
    """Seconds from a planned manifest to the last part."""
    config = PredictConfig(device="cpu", images_per_shard=max(1, len(work.keys) // 4))
    manifest = planned(work.images, work.out, config)
    start = time.perf_counter()
    with ThreadPoolExecutor(config.concurrency) as shards:
        reports = list(
            shards.map(
                lambda number: write_part_with(model, manifest, number, config),
                range(manifest.num_shards),
            )
        )
    seconds = time.perf_counter() - start
    assert all(report.part.ok == report.part.rows for report in reports), "an image failed"
    return seconds * len(work.keys) / manifest.num_rows


@torch.inference_mode()
def plain_loop(net: Net, work: Round) -> float:
    """Seconds of the loop over all images."""
    start = time.perf_counter()
    for key in work.keys:
        with fsspec.open(f"{work.images}/{key}", "rb") as file:
            pixels = np.asarray(Image.open(file).convert("RGB"))
        with fsspec.open(f"{work.out}-loop/{key}.png", "wb") as file:
            file.write(segment(net, pixels[None])[0])
    return time.perf_counter() - start


@torch.inference_mode()
def segment(net: Net, pixels: np.ndarray) -> list[bytes]:
    """PNGs of the label maps of ``N x H x W x 3`` images."""
    images = TORCHVISION.normalise(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    labels = net(images.contiguous()).argmax(dim=1).byte().numpy()
    files = []
    for label in labels:
        file = io.BytesIO()
        image = Image.fromarray(label)
        image.putpalette(PALETTE)
        image.save(file, "PNG")
        files.append(file.getvalue())
    return files


class Segmenter:
    """Ray's actor: holds the network."""

    def __init__(self, net: nn.Module) -> None:
        torch.set_num_threads(1)
        self.net = net.eval()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        masks = segment(self.net, np.stack(list(batch["image"])))
        return {"path": batch["path"], "mask": masks, "end": [time.time()] * len(masks)}


def ray_data(net: nn.Module, work: Round) -> float:
    """Seconds for all images, at the rate between the first batch's end and the last one's."""
    store, root = _arrow_store(work.images)
    images = ray.data.read_images(
        [f"{root}/{key}" for key in work.keys], filesystem=store, mode="RGB", include_paths=True
    )
    masks = images.map_batches(
        Segmenter,
        fn_constructor_args=(net,),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=os.cpu_count()),
        num_cpus=0.5,  # Ray's own count: the other half is for its reading and writing
    )
    store, root = _arrow_store(f"{work.out}-ray")
    masks.write_parquet(root, filesystem=store)
    ends = np.sort(pq.read_table(root, filesystem=store)["end"].to_numpy())
    assert len(ends) == len(work.keys)
    return (ends[-1] - ends[0]) * len(ends) / (len(ends) - 1)


def _arrow_store(url: str) -> tuple[pa_fs.FileSystem, str]:
    """Arrow's own file system, which Ray Data uses best, and the path there."""
    if not url.startswith("s3://"):
        return pa_fs.LocalFileSystem(), url
    endpoint = urlsplit(os.environ["AWS_ENDPOINT_URL"])
    store = pa_fs.S3FileSystem(
        access_key="test",
        secret_key="test",
        region="us-east-1",
        scheme=endpoint.scheme,
        endpoint_override=endpoint.netloc,
        allow_bucket_creation=True,
    )
    return store, url.removeprefix("s3://")


def contenders(
    trunk: str, store: str, tensors: Sequence[torch.Tensor]
) -> Mapping[str, Callable[[Round], float]]:
    """What takes its turn, by name."""
    plain, net = predictor(trunk), predictor(trunk).net
    net.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    fastest = fcn.Predictor(plain.model, device="cpu", backend="auto")
    each = [partial(bare, plain, [tensor]) for tensor in tensors]
    found: dict[str, Callable[[Round], float]] = {
        "bare network": lambda _: seconds_of(each, CORES.on_one)[0],
        f"fcn-flows, auto ({fastest.backend})": lambda work: fcn_flows(fastest, work),
        "fcn-flows, torch": lambda work: fcn_flows(plain, work),
        "plain loop": lambda work: of_some(partial(plain_loop, net), work, 2),
    }
    if trunk != "vgg16":
        found["Ray Data"] = lambda work: ray_data(net, work)
    if trunk != "vgg16" and store == "local":
        other = fcn_resnet50(weights=None, weights_backbone=None, num_classes=NUM_CLASSES).eval()
        found["torchvision fcn_resnet50, plain loop"] = lambda work: of_some(
            partial(plain_loop, lambda images: other(images)["out"]), work, 16
        )
    return found


def of_some(turn: Callable[[Round], float], work: Round, parts: int) -> float:
    """Seconds of a round at the rate of its first part, of so many."""
    some = Round(work.place, 0, work.keys[: -(-len(work.keys) // parts)])
    some.out = work.out
    return turn(some) * len(work.keys) / len(some.keys)


def measure(
    trunk: str, store: str, place: str, rounds: int, num_images: int
) -> dict[str, np.ndarray]:
    """Images a second of each contender, round by round, after a first round of few images."""
    rng = np.random.default_rng(0)
    files = [photograph(rng) for _ in range(num_images)]
    keys = [f"{index:04}.jpg" for index in range(len(files))]
    place = f"{place}/{trunk}"
    for key, data in zip(keys, files, strict=True):
        stores.write_bytes(f"{place}/images/{key}", data)
    turns = contenders(trunk, store, ready_tensors([decode_image(data).pixels for data in files]))
    rates: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, turn in turns.items():
            work = Round(place, number, keys if number else keys[: WARM[trunk]])
            work.out += f"-{list(turns).index(name)}"
            rate = len(work.keys) / turn(work)
            if number:
                rates[name].append(rate)
                print(f"{trunk} {name}: {rate:.2f} images/s", flush=True)
    return {name: np.array(values) for name, values in rates.items()}


def rows(trunk: str, store: str, rates: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Lines of the table."""
    top = rates["bare network"]
    auto, torch_ = (values for name, values in rates.items() if name.startswith("fcn-flows"))
    for name, values in rates.items():
        cells = [trunk, store, name, spread(values, 2), spread(100 * values / top)]
        others = not name.startswith(("fcn-flows", "bare"))
        cells += [spread(ours / values, 2) if others else "" for ours in (auto, torch_)]
        yield f"| {' | '.join(cells)} |"


HEAD = """# Prediction, end to end, beside what else one would use

FCN-8s, 21 classes, JPEGs of 500 x 375, on files of the same machine and on an S3 endpoint that
answers after 25 ms. Images a second, their share of the bare network's rate (PyTorch, an image
a core), and how many times faster fcn-flows is with either backend: medians of rounds in turn,
with the smallest and the largest. What each contender does is told in `benchmarks/rivals.py`;
torchvision's network is another one.

| trunk | store | what | images/s | of the bare network, % | auto is faster by | torch by |
|---|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--trunks", nargs="+", default=list(IMAGES), choices=list(IMAGES))
    parser.add_argument("--stores", nargs="+", default=["local", "S3"], choices=["local", "S3"])
    parser.add_argument("--images", type=int, help="of a round, of every network")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    lines = []
    ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    with tempfile.TemporaryDirectory() as folder, bucket() as s3:
        for store in args.stores:
            for trunk in (trunk for trunk in CASES[store] if trunk in args.trunks):
                place, num_images = folder if store == "local" else s3, args.images or IMAGES[trunk]
                rates = measure(trunk, store, place, args.rounds, num_images)
                lines += rows(trunk, store, rates)
    ray.shutdown()
    versions = f"{describe()}\nray {ray.__version__}, openvino {version('openvino')}."
    rounds = f"Rounds: {args.rounds}."
    text = "\n".join([HEAD, *lines, "", rounds, command("rivals"), "", versions, ""])
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
