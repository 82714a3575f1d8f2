"""The kernel finds what upsampling, maximum and softmax of torch find."""

import itertools
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fcn.fused_cpu import BLOCK, fused_winners
from fcn.geometry import CoordinateMap
from fcn.upsample import Upscore

PIXEL = CoordinateMap()
ULPS = 4  # by which sums of four products may differ


def check(up: Upscore, score: torch.Tensor, window: tuple[int, int, int, int]) -> int:
    """Compare the kernel with torch in a window; how many labels differ, of scores all but tied."""
    top, left, height, width = window
    with torch.no_grad():
        fine = up(score.float())[..., top : top + height, left : left + width]
        share = fine.double().softmax(dim=1).amax(dim=1).sum(dim=(1, 2))
        labels, sums = fused_winners(up, score, *window)
    assert labels.dtype == (np.uint8 if score.shape[1] <= 256 else np.uint16)
    assert labels.shape == (len(score), height, width)
    assert sums.dtype == np.float64
    np.testing.assert_allclose(sums, share, rtol=1e-6)

    best = fine.max(dim=1)
    chosen = fine.gather(1, torch.from_numpy(labels.astype(np.int64))[:, None])[:, 0]
    largest = score.float().abs().amax()
    ulp = torch.nextafter(largest, torch.tensor(math.inf)) - largest
    assert (best.values - chosen <= ULPS * ulp).all()
    return int((best.indices.numpy() != labels).sum())


@pytest.mark.parametrize("factor", [1.5, 2, 8, 16, 32])
@pytest.mark.parametrize("replicate_border", [True, False])
@pytest.mark.parametrize("odd", [True, False])
def test_any_geometry(factor: float, replicate_border: bool, odd: bool) -> None:
    if factor == 1.5:
        factor, target = 3, CoordinateMap(2, 0.5)
    else:
        target = PIXEL
    stride = int(factor) * target.stride
    source = CoordinateMap(stride, (stride - 1) / 2 if odd else 0.0)
    up = Upscore(5, source, target, replicate_border=replicate_border)
    torch.manual_seed(0)
    score = torch.randn(2, 5, 6, 9)
    _, _, rows, columns = up(score).shape
    whole = (0, 0, rows, columns)
    cropped = (up.crop, up.crop, rows - 2 * up.crop, columns - 2 * up.crop)
    windows = [whole, cropped, (rows - 1, columns - 1, 1, 1), (1, 3, rows // 2, 1), (2, 1, 1, 7)]
    assert sum(check(up, score, window) for window in windows) <= 2


@pytest.mark.parametrize("num_classes", [1, 2, 21, 256, 257, 1000])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e4, 1e37])
def test_any_number_of_classes_and_any_scale(num_classes: int, scale: float) -> None:
    up = Upscore(num_classes, CoordinateMap(8, 3.5), PIXEL, replicate_border=True)
    torch.manual_seed(num_classes)
    score = torch.randn(1, num_classes, 2, 18) * scale
    assert check(up, score, (up.crop, up.crop, 16, BLOCK + 3)) <= 2 + 2000 * (scale < 1e-40)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1)])
@pytest.mark.parametrize("learnable", [False, True])
def test_maps_of_one_cell(size: tuple[int, int], learnable: bool) -> None:
    up = Upscore(3, CoordinateMap(8, 3.5), PIXEL, replicate_border=True, learnable=learnable)
    height, width = (8 * cells for cells in size)
    check(up, torch.randn(2, 3, *size), (up.crop, up.crop, height, width))


def test_learnable_kernels() -> None:
    up = Upscore(4, CoordinateMap(8, 3.5), PIXEL, replicate_border=True, learnable=True)
    assert up.weight is not None
    torch.nn.init.normal_(up.weight, std=0.1)
    assert check(up, torch.randn(2, 4, 5, 30), (up.crop + 3, up.crop, 30, 200)) <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_scores_of_other_types_and_layouts(dtype: torch.dtype) -> None:
    up = Upscore(7, CoordinateMap(16, 7.5), PIXEL, replicate_border=True)
    score = torch.randn(2, 7, 5, 6).to(dtype)
    window = (up.crop, up.crop, 80, 96)
    check(up, score, window)
    found = fused_winners(up, score, *window)
    others = fused_winners(up, score.contiguous(memory_format=torch.channels_last), *window)
    assert np.array_equal(found[0], others[0])
    assert np.array_equal(found[1], others[1])


def test_of_equal_scores_the_first_class_wins() -> None:
    up = Upscore(9, CoordinateMap(8, 3.5), PIXEL, replicate_border=True)
    score = torch.randint(-1, 2, (1, 9, 6, 6)).float()
    score[:, 4] = score[:, 2]
    score[:, 0] = -3
    labels, _ = fused_winners(up, score, up.crop, up.crop, 48, 48)
    assert 2 in labels
    assert 4 not in labels
    labels, sums = fused_winners(up, torch.zeros(1, 9, 3, 3), 0, 0, 20, 20)
    assert not labels.any()
    assert sums[0] == pytest.approx(400 / 9)


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("learnable", [False, True])
def test_scores_that_are_not_finite_are_noticed_in_their_image(
    value: float, learnable: bool
) -> None:
    up = Upscore(3, CoordinateMap(8, 3.5), PIXEL, replicate_border=True, learnable=learnable)
    score = torch.randn(2, 3, 4, 5)
    score[1, 2, 3, 4] = value
    with torch.no_grad():
        labels, sums = fused_winners(up, score, up.crop, up.crop, 32, 40)
    assert math.isfinite(sums[0])
    assert not math.isfinite(sums[1])
    assert labels.max() < 3


def test_windows_and_images_are_to_the_bit_those_of_the_whole() -> None:
    up = Upscore(6, CoordinateMap(8, 3.5), PIXEL, replicate_border=True)
    score = torch.randn(2, 6, 9, 40)
    whole, _ = fused_winners(up, score, up.crop, up.crop, 72, 320)
    total = np.zeros(2)
    for top, left in itertools.product(range(0, 72, 24), range(0, 320, 107)):
        height, width = min(24, 72 - top), min(107, 320 - left)
        for number in range(2):
            part, sums = fused_winners(
                up, score[number : number + 1], up.crop + top, up.crop + left, height, width
            )
            assert np.array_equal(part[0], whole[number, top : top + height, left : left + width])
            total[number] += sums[0]
    _, sums = fused_winners(up, score, up.crop, up.crop, 72, 320)
    np.testing.assert_allclose(total, sums, rtol=1e-13)


def test_the_network_is_imported_without_a_compiler() -> None:
    code = "import sys, fcn, fcn.predict; sys.exit('numba' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_it_compiles_where_no_cache_can_be_written(tmp_path: Path) -> None:
    """A file where the only folder that Numba may take should be; else it would find another."""
    (tmp_path / "file").touch()
    environment = os.environ | {
        "NUMBA_CACHE_DIR": str(tmp_path / "file" / "cache"),
        "NUMBA_CACHE_LOCATOR_CLASSES": "UserProvidedCacheLocator",
    }
    code = (
        "import torch, fcn.fused_cpu as f; print(f._kernel.stats.cache_path, f._kernel.signatures)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("None [(Array(float32, 3, 'C'")
