"""What runs the network on a CPU: torch, ONNX Runtime, OpenVINO, in floats and in integers.

::

    python -m benchmarks.backends
    python -m benchmarks.backends --dataset work/dataset --model work/run/model.safetensors

FCN-8s on two trunks, one image of 500 x 375, from pixels in memory to label map and confidence,
as a `fcn.Predictor` gives them. "Eager" is the network as torch makes it, on a ready tensor,
and the largest score of every pixel. All take turns, one image each, in one process; medians
with the smallest and the largest, and the median ratio to eager within a turn. Weights are
random: no backend's time depends on them. With ``--compile`` torch.compile takes part; it
compiles for minutes on two cores.

With a dataset and a model trained on it, their scores on the split val by every backend, and no
times. Each of the two has its part of ``docs/benchmarks/backends.md``, with the command and the
machine that gave it; the other part is kept.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

import fcn
from benchmarks.machine import command, describe
from fcn.evaluate import score_samples
from fcn.images import decode_image
from fcn.input import TORCHVISION
from fcn.quantise import quantise
from tasks.dataset import Samples, open_split, read_info
from tasks.quantise import spread

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "backends.md"
NETS = {"vgg16": 3, "squeezenet1_1": 40}
"""Trunks of FCN-8s, and turns."""

NUM_CLASSES, NUM_CALIBRATION = 21, 64
ACCURACY = "## Accuracy"


def random_model(backbone: str) -> fcn.Model:
    torch.manual_seed(0)
    net = fcn.FCN(backbone, NUM_CLASSES, 8).eval()
    for layer in net.modules():
        if isinstance(layer, torch.nn.Conv2d) and not layer.weight.any():  # score layers
            torch.nn.init.normal_(layer.weight, std=0.1)
    return fcn.Model(net, fcn.Classes.named(map(str, range(NUM_CLASSES)), 255), TORCHVISION)


def eager(net: torch.nn.Module, image: np.ndarray) -> Callable[[], object]:
    tensor = TORCHVISION.normalise(torch.from_numpy(image)[None].permute(0, 3, 1, 2)).contiguous()

    @torch.inference_mode()
    def run() -> object:
        return net(tensor).max(dim=1).indices.byte()

    return run


def contestants(
    backbone: str, image: np.ndarray, *, compile_: bool
) -> dict[str, Callable[[], object]]:
    model = random_model(backbone)
    plain = copy.deepcopy(model.net)
    runs = {"eager": eager(plain, image)}
    if compile_:
        runs["compile"] = eager(torch.compile(plain), image)  # type: ignore[arg-type]
    whole = quantise(model, [image])
    predictors = {
        "torch, channels last": fcn.Predictor(model, device="cpu"),
        "onnxruntime": fcn.Predictor(model, backend="onnxruntime"),
        "openvino": fcn.Predictor(model, backend="openvino"),
        "onnxruntime, int8": fcn.Predictor(whole, backend="onnxruntime"),
        "openvino, int8": fcn.Predictor(whole, backend="openvino"),
    }
    return runs | {name: lambda p=p: p.predict([image]) for name, p in predictors.items()}


def measure(backbone: str, turns: int, *, compile_: bool) -> list[str]:
    image = np.random.default_rng(0).integers(0, 256, (375, 500, 3), np.uint8)
    runs = contestants(backbone, image, compile_=compile_)
    seconds = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            if turn:  # the first is not counted
                seconds[name].append(time.perf_counter() - start)
    lines = []
    for name, found in seconds.items():
        low, middle, high = 1e3 * np.quantile(found, [0, 0.5, 1])
        ratio = np.median(np.array(seconds["eager"]) / found)
        lines.append(
            f"| {backbone} | {name} | {middle:.1f} ({low:.1f}–{high:.1f}) | "
            f"{1e3 / middle:.2f} | {ratio:.2f} |"
        )
    return lines


def accuracy(dataset: str, model_file: str) -> list[str]:
    info, model = read_info(dataset), fcn.load(model_file)
    train, val = open_split(info, "train"), open_split(info, "val")
    places = spread(len(train), NUM_CALIBRATION)
    whole = quantise(model, (decode_image(train[place].image).pixels for place in places))
    cases: list[tuple[str, fcn.Model, dict[str, str]]] = [
        ("torch", model, {"backend": "torch"}),
        ("onnxruntime", model, {"backend": "onnxruntime"}),
        ("openvino", model, {"backend": "openvino"}),
        ("onnxruntime, int8", whole, {"backend": "onnxruntime"}),
        ("openvino, int8", whole, {"backend": "openvino"}),
    ]
    what = (
        f"FCN-{model.net.stride}s on {model.net.backbone}, {info.source.rpartition('/')[2]}, "
        f"{len(val)} images of val; ranges seen on {len(places)} of train."
    )
    lines = [
        what,
        "",
        "| backend | mean IU, % | pixel accuracy, % |",
        "|---|---|---|",
    ]
    for name, which, options in cases:
        scores = score(fcn.Predictor(which, device="cpu", **options), val)  # type: ignore[arg-type]
        lines.append(f"| {name} | {100 * scores.mean_iu:.2f} | {100 * scores.pixel_accuracy:.2f} |")
    return lines


def score(predictor: fcn.Predictor, samples: Samples) -> fcn.Scores:
    return fcn.Scores(sum(sample.confusion for sample in score_samples(predictor, samples)))


def made() -> str:
    """How a part of the page was made."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("openvino", "onnxruntime", "onnx"))
    threads = f"{torch.get_num_threads()} threads"
    return f"{command('backends')}\n\n{describe()}\n{versions}; {threads}."


def times(nets: Sequence[str], *, compile_: bool) -> str:
    """The part of the page that tells how long an image takes."""
    before = os.getloadavg()[0]
    lines = []
    for net in nets:
        lines += measure(net, NETS[net], compile_=compile_)
        print("\n".join(lines), flush=True)
    turns = ", ".join(f"{net} {NETS[net]}" for net in nets)
    return "\n".join(
        [
            *(HEAD, *lines, "", f"Turns: {turns}."),
            *([] if compile_ else ["torch.compile: skipped, see `--compile`."]),
            *(
                "",
                made(),
                f"Load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}.",
            ),
            "",
        ]
    )


HEAD = """# Backends on a CPU

FCN-8s, 21 classes, one image of 500 x 375, from its pixels to label map and
confidence (eager and compile: from a ready tensor to the label map). Milliseconds:
medians over turns, with the smallest and the largest; the ratio is the median of
eager's time to the backend's within a turn.

| trunk | backend | ms | img/s | x eager |
|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--dataset", help="a dataset of ingest, for the accuracy")
    parser.add_argument("--model", help="a model trained on it")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too")
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    if bool(args.dataset) != bool(args.model):
        parser.error("--dataset and --model belong together")
    text = args.page.read_text("utf-8") if args.page.exists() else ""
    speed, _, scores = text.partition(f"{ACCURACY}\n")
    if args.dataset:
        scores = "\n".join(["", *accuracy(args.dataset, args.model), "", made(), ""])
    else:
        speed = times(args.nets, compile_=args.compile) + "\n"
    text = speed + (f"{ACCURACY}\n{scores}" if scores else "")
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
