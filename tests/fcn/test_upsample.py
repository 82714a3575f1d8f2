import pytest
import torch
from torch.nn import functional

from fcn.geometry import CoordinateMap
from fcn.upsample import Upscore, bilinear_kernel, fit

VGG = CoordinateMap(stride=8, offset=3.5)
PIXEL = CoordinateMap()


@pytest.mark.parametrize("factor", [2, 8, 32])
def test_fixed_upsampling_is_interpolation_by_the_factor(factor: int) -> None:
    source = CoordinateMap(stride=factor, offset=(factor - 1) / 2)
    up = Upscore(3, source, PIXEL, replicate_border=True)
    score = torch.randn(2, 3, 5, 7, dtype=torch.float64)
    out = fit(up(score), up.crop, 5 * factor, 7 * factor)
    expected = functional.interpolate(score, scale_factor=factor, mode="bilinear")
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("offset", [0.0, 3.5, 7.0])
@pytest.mark.parametrize("replicate_border", [True, False])
def test_fixed_and_learnable_start_equal(offset: float, replicate_border: bool) -> None:
    options = {"source": CoordinateMap(8, offset), "target": PIXEL}
    fixed = Upscore(3, **options, replicate_border=replicate_border)
    learnable = Upscore(3, **options, replicate_border=replicate_border, learnable=True)
    score = torch.randn(2, 3, 5, 7)
    torch.testing.assert_close(fixed(score), learnable(score))


def test_gradients_of_fixed_and_learnable_agree() -> None:
    grads = []
    for learnable in (False, True):
        score = torch.arange(24.0).reshape(1, 2, 3, 4).requires_grad_()
        up = Upscore(2, VGG, PIXEL, replicate_border=True, learnable=learnable)
        (up(score) ** 2).sum().backward()
        grads.append(score.grad)
    torch.testing.assert_close(*grads)


def test_one_kernel_a_class_and_none_between_classes() -> None:
    up = Upscore(21, CoordinateMap(32, 15.5), PIXEL, replicate_border=True, learnable=True)
    assert up.weight is not None
    assert up.weight.shape == (21, 1, 64, 64)


def test_kernel_is_that_of_the_authors_surgery() -> None:
    expected = torch.tensor([0.25, 0.75, 0.75, 0.25])
    torch.testing.assert_close(bilinear_kernel(2, 1.5, 4), torch.outer(expected, expected))
    expected = torch.tensor([1, 2, 3, 2, 1]) / 3
    torch.testing.assert_close(bilinear_kernel(3, 2, 5), torch.outer(expected, expected))


def test_scores_do_not_fade_at_the_border() -> None:
    score = torch.ones(1, 1, 3, 3)
    for border, corner in ((True, 1.0), (False, 0.5625**2)):
        up = Upscore(1, VGG, PIXEL, replicate_border=border)
        out = fit(up(score), up.crop, 24, 24)
        assert float(out[0, 0, 0, 0]) == pytest.approx(corner)


@pytest.mark.parametrize("num_rows", [1, 7, 100])
@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("replicate_border", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.5])
def test_strips_make_up_the_window(
    num_rows: int, learnable: bool, replicate_border: bool, offset: float
) -> None:
    options = {"replicate_border": replicate_border, "learnable": learnable}
    up = Upscore(3, CoordinateMap(8, offset), PIXEL, **options)
    score = torch.randn(2, 3, 5, 7)
    for window in [(up.crop, up.crop, 33, 50), (9, 17, 20, 3), (31, 0, 1, 56)]:
        top, left, height, width = window
        strips = list(up.strips(score, *window, num_rows))
        assert all(strip.shape[2] <= num_rows for strip in strips)
        expected = up(score)[..., top : top + height, left : left + width]
        torch.testing.assert_close(torch.cat(strips, dim=2), expected)


@pytest.mark.parametrize("learnable", [False, True])
@pytest.mark.parametrize("replicate_border", [True, False])
@pytest.mark.parametrize("offset", [0.0, 3.5])
def test_a_window_is_a_part_of_the_whole(
    learnable: bool, replicate_border: bool, offset: float
) -> None:
    options = {"replicate_border": replicate_border, "learnable": learnable}
    up = Upscore(3, CoordinateMap(8, offset), PIXEL, **options)
    for size in ((5, 7), (1, 1), (2, 1)):
        whole = up(score := torch.randn(2, 3, *size))
        height, width = (cells - 3 for cells in whole.shape[2:])
        for first in (0, 3):
            found = up.window(score, first, height, width)
            torch.testing.assert_close(found, fit(whole, first, height, width))


def test_upsampling_needs_a_finer_target() -> None:
    with pytest.raises(ValueError, match="cannot upsample stride 8 to stride 8"):
        Upscore(1, VGG, VGG, replicate_border=True)
