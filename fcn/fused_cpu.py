"""Upsampling, winning class and its probability in one compiled kernel, for CPUs.

A row of coarse scores is spread over the columns once; a fine row is then a weighted sum of two
such rows, made class by class for `BLOCK` pixels at a time: once to find the largest score, and
once more, out of the cache of the processor, to sum the exponentials. Nothing of size C x H x W is
ever written. Every loop over pixels has `BLOCK` turns, which LLVM makes vector instructions of, and
no rest of another rounding: what is found at a pixel does not depend on where a window begins.

Importing this module compiles the kernel, or reads it from Numba's cache: the folder
``NUMBA_CACHE_DIR``, else ``__pycache__`` beside this file, else the user's cache. Where none can
be written every process compiles for itself.
"""

from functools import lru_cache
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fcn.upsample import Upscore

BLOCK = 128
"""Pixels that are worked on together: two rows of scores of 21 classes are 21 KB."""

_LOG2_E = np.float32(1.4426950408889634)
_ROUND = np.float32(3 << 22)  # added to a small number, leaves its integer in the lowest bits
_LEAST = np.float32(-125)  # 2 ** _LEAST is nothing beside 1, and a normal number
# 2 ** x in [-1/2, 1/2], Chebyshev's, of a relative error below 3e-7 in float32.
_P0, _P1, _P2, _P3, _P4, _P5 = map(
    np.float32, (1.0, 0.69314698, 0.24022651, 0.05550411, 0.0096181291, 0.0013333558)
)
_ONE = np.float32(1)


def _compiled(kernel: Any) -> Any:
    """The kernel as machine code, that other threads of Python run beside."""
    signature = numba.void(
        numba.float32[:, :, ::1],
        *(numba.int64[:, ::1], numba.float32[:, ::1]) * 2,
        *(numba.float32[:, :, :, ::1], numba.float32[:, ::1], numba.int32[::1]),
        *(numba.uint16[:, ::1], numba.float64[::1]),
    )
    # "contract" allows a * b + c to be rounded once, and nothing else of IEEE 754 is given up.
    options: Any = {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
    try:
        return numba.njit(signature, cache=True, **options)(kernel)
    except (RuntimeError, OSError):  # no folder for a cache
        return numba.njit(signature, **options)(kernel)


@_compiled
def _kernel(  # type: ignore[no-untyped-def]  # noqa: PLR0912
    score, rows, row_weights, columns, column_weights, wide, block, winner, label, total
):
    """Labels of an image, and the sums of their probabilities.

    Args:
        score: Scores ``C x h x w``.
        rows: Above and below every fine row, its coarse ones, ``2 x H``: one of an even number and
            one of an odd one, or one twice.
        row_weights: Their weights.
        columns: The same of fine columns, ``2 x W`` rounded up to whole blocks.
        column_weights: Their weights.
        wide: Gets an even and an odd coarse row, ``2 x W / BLOCK x C x BLOCK``.
        block: For the best scores and the sums of a block, ``2 x BLOCK``.
        winner: For its classes, ``BLOCK``.
        label: Gets the classes, ``H x W``.
        total: Gets the probabilities of every column added, ``W`` rounded up.
    """
    num_classes = score.shape[0]
    height, width = label.shape
    even, odd = -1, -1  # the coarse rows in `wide`
    top = 0
    while top < height:
        above, below = rows[0, top], rows[1, top]
        end = top + 1
        while end < height and rows[0, end] == above and rows[1, end] == below:
            end += 1
        for side in range(2):
            row = rows[side, top]
            place = row & 1
            if row != (odd if place else even):
                if place:
                    odd = row
                else:
                    even = row
                for part in range(wide.shape[1]):
                    for number in range(num_classes):
                        for i in range(BLOCK):
                            x = part * BLOCK + i
                            wide[place, part, number, i] = (
                                score[number, row, columns[0, x]] * column_weights[0, x]
                                + score[number, row, columns[1, x]] * column_weights[1, x]
                            )
        up, low = above & 1, below & 1
        for part in range(wide.shape[1]):
            start = part * BLOCK
            for y in range(top, end):
                upper, lower = row_weights[0, y], row_weights[1, y]
                for i in range(BLOCK):
                    block[0, i] = wide[up, part, 0, i] * upper + wide[low, part, 0, i] * lower
                    block[1, i] = 0
                    winner[i] = 0
                for number in range(1, num_classes):
                    for i in range(BLOCK):
                        value = (
                            wide[up, part, number, i] * upper + wide[low, part, number, i] * lower
                        )
                        if value > block[0, i]:  # of equal scores the first class
                            block[0, i] = value
                            winner[i] = number
                for number in range(num_classes):
                    for i in range(BLOCK):
                        value = (
                            wide[up, part, number, i] * upper + wide[low, part, number, i] * lower
                        )
                        power = (value - block[0, i]) * _LOG2_E
                        power = power if power > _LEAST else _LEAST
                        rounded = power + _ROUND
                        rest = power - (rounded - _ROUND)
                        near = (((_P5 * rest + _P4) * rest + _P3) * rest + _P2) * rest + _P1
                        near = near * rest + _P0
                        exponent = np.float32(rounded).view(np.int32) << np.int32(23)
                        bits = np.float32(near).view(np.int32) + exponent
                        block[1, i] += np.int32(bits).view(np.float32)
                for i in range(BLOCK):
                    total[start + i] += _ONE / block[1, i]
                last = width - start if width - start < BLOCK else BLOCK
                for i in range(last):
                    label[y, start + i] = winner[i]
        top = end


def fused_winners(
    upscore: Upscore, score: Tensor, top: int, left: int, height: int, width: int
) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Winning classes in a window of the upsampled scores, and the sums of their probabilities.

    Of equal scores the first class wins. Learnable kernels, which are not bilinear, upsample in
    torch; every score is then a place of its own.

    Args:
        upscore: Upsampling.
        score: Scores ``N x C x h x w``, of any floating dtype and strides.
        top: First row of the window, counted in pixels of the upsampled map.
        left: First column.
        height: Rows of the window.
        width: Columns.

    Returns:
        Labels ``N x height x width``, uint8 (uint16 above 256 classes), and float64 ``N``, NaN
        for images with scores that are not finite.
    """
    if upscore.weight is not None:
        score = upscore(score)[..., top : top + height, left : left + width]
        rows, columns = _every(height, height), _every(width, _blocks(width))
    else:
        kernel = upscore.factor, upscore.border, float(upscore.centre)
        rows = _around(score.shape[2], top, height, height, *kernel)
        columns = _around(score.shape[3], left, width, _blocks(width), *kernel)
    scores = score.float().contiguous().numpy()
    num_classes = scores.shape[1]
    wide = np.empty((2, _blocks(width) // BLOCK, num_classes, BLOCK), np.float32)
    block, winner = np.empty((2, BLOCK), np.float32), np.empty(BLOCK, np.int32)
    labels = np.empty((len(scores), height, width), np.uint16)
    totals = np.zeros((len(scores), _blocks(width)))
    for image, label, total in zip(scores, labels, totals, strict=True):
        _kernel(image, *rows, *columns, wide, block, winner, label, total)
    sums: NDArray[np.float64] = totals[:, :width].sum(axis=1)
    sums[~np.isfinite(scores).all(axis=(1, 2, 3))] = np.nan
    return labels.astype(np.uint8) if num_classes <= 256 else labels, sums


Places = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Two coarse cells for every fine one, ``2 x size``, and their weights."""


def _blocks(width: int) -> int:
    return -(-width // BLOCK) * BLOCK


def _every(size: int, padded: int) -> Places:
    """Every cell as it is; beyond ``size`` nothing."""
    cells = np.minimum(np.arange(padded), size - 1)
    weights = np.array([[1], [0]], np.float32) * (np.arange(padded) < size)
    return np.stack([cells, cells]), weights.astype(np.float32)


@lru_cache(maxsize=64)
def _around(
    cells: int,
    start: int,
    size: int,
    padded: int,
    factor: int,
    border: int,
    centre: float,
) -> Places:
    """The cells around fine ones from ``start`` on, as `Upscore` lays them; not to be changed.

    Beyond the repeated border, and beyond ``size``, there is nothing: a weight of 0.
    """
    fine = np.arange(start, start + padded)
    first = np.floor((fine - centre) / factor).astype(np.int64)
    both = np.stack([first, first + 1])
    weights = 1 - np.abs(fine - (factor * both + centre)) / factor
    weights[(both < 0) | (both >= cells + 2 * border) | (np.arange(padded) >= size)] = 0
    return np.clip(both - border, 0, cells - 1), weights.astype(np.float32)
