"""Fixed upsampling against the transposed convolution, and labels by the kernel against strips.

::

    python -m benchmarks.upsampling

Matrix products and the grouped transposed convolution, forward and backward; then, of an image
of 500 x 375 at a stride of 8 and on one thread, labels and confidence by torch in strips and by
the compiled kernel, in processor time. The two of each in turn, medians of paired runs. Prints
Markdown tables.
"""

import statistics
import time
from collections.abc import Callable

import torch

from benchmarks.machine import describe
from fcn.fused_cpu import fused_winners
from fcn.geometry import CoordinateMap
from fcn.streams import STRIP_ROWS
from fcn.upsample import Upscore
from fcn.winners import winners

CASES = [  # batch, classes, height, width, factor
    (8, 11, 32, 40, 8),
    (1, 21, 47, 63, 8),
    (8, 11, 16, 20, 2),
    (1, 21, 12, 16, 32),
]
RUNS = 15

CLASSES = (2, 21, 150)
HEIGHT, WIDTH = 375, 500


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


@torch.inference_mode()
def measure_labels(classes: int) -> list[float]:
    """Median processor milliseconds of strips and of the kernel, and the median ratio."""
    source = CoordinateMap(8, 3.5)
    upscore = Upscore(classes, source, CoordinateMap(), replicate_border=True)
    score = torch.randn(1, classes, -(-HEIGHT // 8), -(-WIDTH // 8))
    window = upscore.crop, upscore.crop, HEIGHT, WIDTH

    def strips() -> None:
        for strip in upscore.strips(score, *window, STRIP_ROWS):
            winners(strip)

    def kernel() -> None:
        fused_winners(upscore, score, *window)

    pairs = [[processor_seconds(way) for way in (strips, kernel)] for _ in range(RUNS + 2)][2:]
    by_strips, by_kernel = (statistics.median(times) for times in zip(*pairs, strict=True))
    return [1e3 * by_strips, 1e3 * by_kernel, statistics.median(a / b for a, b in pairs)]


def processor_seconds(way: Callable[[], None]) -> float:
    start = time.process_time()
    way()
    return time.process_time() - start


def main(report: Callable[[str], None] = print) -> None:
    report("| scores | factor | products, ms | transposed convolution, ms | ratio |")
    report("|---|---|---|---|---|")
    for case in CASES:
        products, convolution, ratio = measure(*case)
        shape = " x ".join(map(str, case[:4]))
        report(f"| {shape} | {case[4]} | {products:.1f} | {convolution:.1f} | {ratio:.1f} |")
    report("\n| classes | strips, ms | kernel, ms | ratio |")
    report("|---|---|---|---|")
    torch.set_num_threads(1)
    for classes in CLASSES:
        by_strips, by_kernel, ratio = measure_labels(classes)
        report(f"| {classes} | {by_strips:.1f} | {by_kernel:.1f} | {ratio:.1f} |")
    report(f"\n{describe()}")


if __name__ == "__main__":
    main()
