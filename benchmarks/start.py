"""How long a start takes: from a new Python to the first image's labels.

::

    python -m benchmarks.start

New processes in turn, files in the page cache: FCN-8s on two trunks, an image of 500 x 375, with
torch and with the backend that "auto" takes; what is told is `fcn` as a library (import, model
file, predictor, image) and ``python -m fcn predict`` as a command, with its mask and overlay.
Beside them, what is not ours:
Python alone, and with PyTorch imported. Seconds by the clock, from the start of the process to the
end of each step: medians of rounds, with the smallest and the largest, after a round of the small
trunk that is not counted. Writes ``docs/benchmarks/start.md``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

import fcn
from benchmarks.machine import command, describe
from benchmarks.prediction import photograph, predictor, spread

PAGE = Path(__file__).resolve().parents[1] / "docs" / "benchmarks" / "start.md"
NETS = ("vgg16", "squeezenet1_1")
BACKENDS = ("torch", "openvino")

LIBRARY = """
import sys, time
model_file, image_file, backend = sys.argv[1:]
times = []
import fcn
times.append(time.time())
model = fcn.load(model_file)
times.append(time.time())
predictor = fcn.Predictor(model, device="cpu", backend=backend)
times.append(time.time())
from fcn.images import decode_image
with open(image_file, "rb") as file:
    predictor.predict([decode_image(file.read()).pixels])
times.append(time.time())
print(times)
"""

Steps = list[float]


def library(model: Path, image: Path, backend: str) -> Steps:
    """Seconds until import, model, predictor and labels are there, since the process began."""
    start = time.time()
    words = [sys.executable, "-c", LIBRARY, str(model), str(image), backend]
    done = subprocess.run(words, check=True, capture_output=True, text=True)
    return [moment - start for moment in json.loads(done.stdout)]


def ended(*words: str) -> Steps:
    """Seconds until a process has ended."""
    start = time.time()
    subprocess.run([sys.executable, *words], check=True, capture_output=True)
    return [time.time() - start]


def measure(folder: Path, nets: Sequence[str], rounds: int) -> list[str]:
    """Lines of the table."""
    image = folder / "image.jpg"
    image.write_bytes(photograph(np.random.default_rng(0)))
    found: dict[tuple[str, str], list[Steps]] = {}
    for net in nets:
        fcn.save(predictor(net).model, folder / net)
    for number in range(rounds + 1):
        turns = {("Python", ""): ended("-c", ""), ("import torch", ""): ended("-c", "import torch")}
        for net in nets if number else nets[-1:]:
            model = folder / net
            for backend in BACKENDS:
                turns[f"fcn, {backend}", net] = library(model, image, backend)
            words = ["-m", "fcn", "predict", str(image), "--model", str(model)]
            out = str(folder / f"out-{number}")
            turns["python -m fcn predict", net] = ended(*words, "--out", out)
        for what, steps in turns.items():
            if number:
                found.setdefault(what, []).append(steps)
    lines = []
    for (what, net), rows in found.items():
        cells = [spread(steps, 2) for steps in np.array(rows).T]
        lines.append(f"| {' | '.join([what, net, *[''] * (4 - len(cells)), *cells])} |")
    return lines


HEAD = """# Start: from a new Python to the first image's labels

FCN-8s, 21 classes, one JPEG of 500 x 375. Seconds since the process began, by the clock, until
a step is over: medians of rounds, with the smallest and the largest. `fcn.load` imports PyTorch
while it reads and hashes the model file, and so does the command. What is told is explained in
`benchmarks/start.py`.

| what | trunk | `import fcn` | model | predictor | labels, or the end |
|---|---|---|---|---|---|"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", default=list(NETS), choices=list(NETS))
    parser.add_argument("--page", type=Path, default=PAGE, help="where the page is written")
    args = parser.parse_args()
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), args.nets, args.rounds)
    load = f"Load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}."
    rounds = f"Rounds: {args.rounds}."
    text = "\n".join([HEAD, *lines, "", rounds, command("start"), "", describe(), load, ""])
    args.page.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
