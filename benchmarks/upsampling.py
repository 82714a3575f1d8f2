"""Fixed upsampling as matrix products against the grouped transposed convolution.

::

    python -m benchmarks.upsampling

Forward and backward, the two in turn, medians of paired runs. Prints a Markdown table.
"""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.machine import describe
from fcn.geometry import CoordinateMap
from fcn.upsample import Upscore

CASES = [  # batch, classes, height, width, factor
    (8, 11, 32, 40, 8),
    (1, 21, 47, 63, 8),
    (8, 11, 16, 20, 2),
    (1, 21, 12, 16, 32),
]
RUNS = 15


def seconds(layer: Upscore, score: torch.Tensor) -> float:
    start = time.perf_counter()
    layer(score).sum().backward()
    return time.perf_counter() - start


def measure(batch: int, classes: int, height: int, width: int, factor: int) -> list[float]:
    """Median milliseconds of the products, of the convolution, and the median ratio."""
    source = CoordinateMap(factor, (factor - 1) / 2)
    layers = [
        Upscore(classes, source, CoordinateMap(), replicate_border=True, learnable=learnable)
        for learnable in (False, True)
    ]
    score = torch.randn(batch, classes, height, width, requires_grad=True)
    pairs = [[seconds(layer, score) for layer in layers] for _ in range(RUNS + 2)][2:]
    products, convolution = (statistics.median(times) for times in zip(*pairs, strict=True))
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    return [1e3 * products, 1e3 * convolution, ratio]


def main(report: Callable[[str], None] = print) -> None:
    report("| scores | factor | products, ms | transposed convolution, ms | ratio |")
    report("|---|---|---|---|---|")
    for case in CASES:
        products, convolution, ratio = measure(*case)
        shape = " x ".join(map(str, case[:4]))
        report(f"| {shape} | {case[4]} | {products:.1f} | {convolution:.1f} | {ratio:.1f} |")
    report(f"\n{describe()}")


if __name__ == "__main__":
    main()
