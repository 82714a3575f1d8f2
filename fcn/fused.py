"""Upsampling, winning class and its probability in one Triton kernel, for GPUs.

A GPU thread makes the score of its pixel and one class from the four coarse scores around it,
keeps the best class so far and the sum of the exponentials, and goes on to the next class.
Nothing of size C x H x W is ever written, and the coarse scores stay in the caches: at stride 8
they are 64 times fewer than the pixels. What leaves the kernel is a byte a pixel.

Importing this module needs Triton, which comes with torch's CUDA builds.
"""

from typing import Any

import torch
import triton  # type: ignore[import-untyped]
import triton.language as tl  # type: ignore[import-untyped]
from torch import Tensor

from fcn.upsample import Upscore

BLOCK_PIXELS = 256
"""Pixels of a program: two for each thread of four warps."""


@triton.jit
def _around(place, factor, centre, cells, border):  # type: ignore[no-untyped-def]
    """The two cells around each place on one axis, as `Upscore` lays them, and their weights.

    Beyond the repeated border there is nothing: a weight of 0.
    """
    position = (place.to(tl.float32) - centre) / factor
    first = tl.floor(position).to(tl.int32)
    second_weight = position - first.to(tl.float32)
    last = cells - 1 + 2 * border
    first_weight = tl.where((first >= 0) & (first <= last), 1 - second_weight, 0.0)
    second_weight = tl.where((first >= -1) & (first < last), second_weight, 0.0)
    first_cell = tl.minimum(tl.maximum(first - border, 0), cells - 1)
    second_cell = tl.minimum(tl.maximum(first + 1 - border, 0), cells - 1)
    return first_cell, second_cell, first_weight, second_weight


# Sizes are plain numbers to the compiler: one kernel a dtype, however many sizes there are.
@triton.jit(  # type: ignore[untyped-decorator]
    do_not_specialize=[
        *("num_classes", "cell_rows", "cell_columns", "stride_n", "stride_c", "stride_h"),
        *("stride_w", "top", "left", "height", "width", "factor", "centre", "border"),
    ]
)
def _kernel(  # type: ignore[no-untyped-def]
    score,
    label,
    partial,
    num_classes,
    cell_rows,
    cell_columns,
    stride_n,
    stride_c,
    stride_h,
    stride_w,
    top,
    left,
    height,
    width,
    factor,
    centre,
    border,
    BLOCK: tl.constexpr,  # noqa: N803
):
    """Labels and the sum of probabilities of ``BLOCK`` pixels of one image."""
    block, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    pixel = block * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < height * width
    y, x = pixel // width, pixel % width

    upper_row, lower_row, upper_weight, lower_weight = _around(
        y + top, factor, centre, cell_rows, border
    )
    before_column, after_column, before_weight, after_weight = _around(
        x + left, factor, centre, cell_columns, border
    )

    image_score = score + image * stride_n
    upper_before = image_score + upper_row * stride_h + before_column * stride_w
    upper_after = image_score + upper_row * stride_h + after_column * stride_w
    lower_before = image_score + lower_row * stride_h + before_column * stride_w
    lower_after = image_score + lower_row * stride_h + after_column * stride_w

    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)  # of exp(score - best) over the classes so far
    winner = tl.zeros((BLOCK,), tl.int32)
    for number in range(num_classes):
        offset = number * stride_c
        above = before_weight * tl.load(upper_before + offset, mask=inside, other=0.0).to(
            tl.float32
        ) + after_weight * tl.load(upper_after + offset, mask=inside, other=0.0).to(tl.float32)
        below = before_weight * tl.load(lower_before + offset, mask=inside, other=0.0).to(
            tl.float32
        ) + after_weight * tl.load(lower_after + offset, mask=inside, other=0.0).to(tl.float32)
        value = upper_weight * above + lower_weight * below
        wins = value > best  # of equal scores the first class
        smaller = tl.exp(-tl.abs(value - best))
        total = tl.where(wins, total * smaller + 1, total + smaller)
        winner = tl.where(wins, number, winner)
        best = tl.where(wins, value, best)

    place = image * height * width + pixel
    tl.store(label + place, winner.to(label.dtype.element_ty), mask=inside)
    probability = tl.where(inside, 1 / total, 0.0)
    tl.store(partial + image * tl.num_programs(0) + block, tl.sum(probability, axis=0))


def fused_winners(
    upscore: Upscore, score: Tensor, top: int, left: int, height: int, width: int
) -> tuple[Tensor, Tensor]:
    """Winning classes in a window of the upsampled scores, and the sums of their probabilities.

    What `fcn.winners.winners` finds in ``upscore(score)[..., top : top + height, left : left +
    width]``, up to rounding, which float32 is summed in whatever the scores are.

    Args:
        upscore: Upsampling with fixed kernels.
        score: Scores ``N x C x h x w`` on the GPU, of any floating dtype and strides.
        top: First row of the window, counted in pixels of the upsampled map.
        left: First column.
        height: Rows of the window.
        width: Columns.

    Returns:
        Labels ``N x height x width``, uint8 (uint16 above 256 classes), and float64 ``N``.
    """
    assert upscore.weight is None, "learnable kernels are not bilinear"
    num, num_classes, cell_rows, cell_columns = score.shape
    dtype = torch.uint8 if num_classes <= 256 else torch.uint16
    label = torch.empty((num, height, width), dtype=dtype, device=score.device)
    num_blocks = triton.cdiv(height * width, BLOCK_PIXELS)
    partial = torch.empty((num, num_blocks), device=score.device)
    kernel: Any = _kernel
    with torch.cuda.device_of(score):  # type: ignore[no-untyped-call]
        kernel[num_blocks, num](
            *(score, label, partial, num_classes, cell_rows, cell_columns, *score.stride()),
            *(top, left, height, width),
            *(upscore.factor, float(upscore.centre), upscore.border),
            BLOCK=BLOCK_PIXELS,
            enable_fp_fusion=True,  # the default, of which Triton 3.9 would warn
        )
    return label, partial.sum(dim=1, dtype=torch.float64)
