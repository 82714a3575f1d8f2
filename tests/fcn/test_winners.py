"""Labels are those of the largest score, the first of equal ones; probabilities are softmax's."""

import math

import numpy as np
import pytest
import torch

from fcn.input import CAFFE, TORCHVISION, InputSpec
from fcn.winners import winners


@pytest.mark.parametrize("num_classes", [1, 2, 21, 256, 257, 300])
@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1.0, 1e4, 1e36])
def test_labels_and_probabilities_are_those_of_softmax(num_classes: int, scale: float) -> None:
    torch.manual_seed(num_classes)
    scores = torch.randn(2, num_classes, 7, 9) * scale
    scores[:, :, :3] = scores[:, :, :3].div(scale / 2).round().mul(scale)  # with ties
    expected = scores.max(dim=1).indices
    share = scores.double().softmax(dim=1).amax(dim=1).sum(dim=(1, 2))

    labels, sums = winners(scores.clone())

    assert labels.dtype == (torch.uint8 if num_classes <= 256 else torch.int64)
    assert torch.equal(labels.long(), expected)
    assert sums.dtype == torch.float64
    torch.testing.assert_close(sums, share, rtol=1e-6, atol=0)


def test_an_infinite_score_wins_and_a_network_gone_wrong_gives_classes() -> None:
    scores = torch.zeros(1, 3, 1, 2)
    scores[0, 1, 0, 0] = math.inf
    scores[0, :, 0, 1] = math.nan
    labels, sums = winners(scores)
    assert labels.tolist() == [[[1, 0]]]
    assert math.isnan(sums.item())


def test_scores_of_any_layout_give_the_same() -> None:
    torch.manual_seed(0)
    rows_first = torch.randn(5, 2, 21, 8)  # as strips of upsampled rows lie in memory
    scores = rows_first.permute(1, 2, 0, 3)
    (labels, sums), (found, found_sums) = winners(scores.contiguous()), winners(scores.clone())
    assert torch.equal(labels, found)
    torch.testing.assert_close(sums, found_sums, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spec", [TORCHVISION, CAFFE])
def test_interleaved_pixels_are_normalised_to_the_same_bits(
    spec: InputSpec, rng: np.random.Generator
) -> None:
    pixels = torch.from_numpy(rng.integers(0, 256, (2, 13, 17, 3), np.uint8))
    found = spec.normalise_interleaved(pixels)
    assert torch.equal(found, spec.normalise(pixels.permute(0, 3, 1, 2)))
    assert found.is_contiguous(memory_format=torch.channels_last)
