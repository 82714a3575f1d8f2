import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from fcn.loss import JointLoss, median_frequency_weights, pixel_cross_entropy


def test_the_mean_runs_over_labelled_pixels_only() -> None:
    scores = torch.randn(2, 3, 4, 5)
    labels = torch.randint(0, 3, (2, 4, 5))
    labels[:, :2] = 255
    log = functional.log_softmax(scores, dim=1).permute(0, 2, 3, 1)[:, 2:].reshape(-1, 3)
    expected = -log[torch.arange(len(log)), labels[:, 2:].flatten()].mean()
    torch.testing.assert_close(pixel_cross_entropy(scores, labels), expected)


def test_ignored_pixels_have_no_gradient() -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    pixel_cross_entropy(scores, torch.tensor([[[0, 255], [1, 2]]])).backward()
    assert scores.grad is not None
    assert not scores.grad[0, :, 0, 1].any()
    assert scores.grad[0, :, 0, 0].all()


@pytest.mark.parametrize("weights", [None, torch.ones(3)])
def test_a_batch_of_ignored_pixels_has_loss_and_gradient_zero(weights: torch.Tensor | None) -> None:
    scores = torch.randn(1, 3, 2, 2, requires_grad=True)
    loss = pixel_cross_entropy(scores, torch.full((1, 2, 2), 255), class_weights=weights)
    loss.backward()
    assert loss.item() == 0
    assert scores.grad is not None
    assert not scores.grad.any()


def test_class_weights_weigh_the_mean() -> None:
    scores, labels = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    labels[0, 0] = 255
    weights = torch.tensor([0.2, 1.0, 3.0])
    expected = functional.cross_entropy(scores, labels, weights, ignore_index=255)
    found = pixel_cross_entropy(scores, labels, class_weights=weights)
    torch.testing.assert_close(found, expected)


def test_half_precision_does_not_overflow() -> None:
    scores = torch.zeros(1, 2, 512, 512, dtype=torch.float16)
    labels = torch.zeros(1, 512, 512, dtype=torch.uint8)
    assert float(pixel_cross_entropy(scores, labels)) == pytest.approx(math.log(2))


def test_another_ignore_index_is_heeded() -> None:
    scores = torch.randn(1, 3, 1, 2)
    labels = torch.tensor([[[0, 2]]])
    one = pixel_cross_entropy(scores, labels, ignore_index=2)
    torch.testing.assert_close(one, pixel_cross_entropy(scores[..., :1], labels[..., :1]))


def test_median_frequency_weights() -> None:
    weights = median_frequency_weights([100, 400, 0, 1600])
    np.testing.assert_allclose(weights, [4, 1, 0, 0.25])
    with pytest.raises(ValueError, match="no class has a labelled pixel"):
        median_frequency_weights([0, 0])


def two_heads() -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of three and two classes, and labels of which the second head's are mostly ignored."""
    scores = torch.randn(2, 5, 4, 6, requires_grad=True)
    labels = torch.stack([torch.randint(0, 3, (2, 4, 6)), torch.randint(0, 2, (2, 4, 6))], dim=1)
    labels[:, 1, 1:] = 255
    return scores, labels


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0, 0.25])])
def test_heads_add_up_each_by_its_own_labelled_pixels(weights: torch.Tensor | None) -> None:
    scores, labels = two_heads()
    loss = JointLoss([3, 2], 255, weights)
    first, second = (None, None) if weights is None else (weights[:3], weights[3:])
    expected = pixel_cross_entropy(scores[:, :3], labels[:, 0], class_weights=first)
    expected = expected + pixel_cross_entropy(scores[:, 3:], labels[:, 1], class_weights=second)
    torch.testing.assert_close(loss(scores, labels, loss.totals(labels)), expected)


def test_parts_of_a_batch_add_up_to_its_joint_loss() -> None:
    scores, labels = two_heads()
    loss = JointLoss([3, 2], 255)
    totals = loss.totals(labels[:1]) + loss.totals(labels[1:])
    parts = loss(scores[:1], labels[:1], totals) + loss(scores[1:], labels[1:], totals)
    torch.testing.assert_close(parts, loss(scores, labels, totals))


def test_a_head_without_labels_adds_no_loss_and_no_gradient() -> None:
    scores, labels = two_heads()
    labels[:, 1] = 255
    loss = JointLoss([3, 2], 255)
    found = loss(scores, labels, loss.totals(labels))
    torch.testing.assert_close(found, pixel_cross_entropy(scores[:, :3], labels[:, 0]))
    found.backward()
    assert scores.grad is not None
    assert not scores.grad[:, 3:].any()


def test_the_loss_of_one_head_is_the_plain_one_to_the_bit() -> None:
    scores, labels = torch.randn(2, 3, 4, 6), torch.randint(0, 3, (2, 4, 6))
    loss = JointLoss([3], 255)
    assert torch.equal(
        loss(scores, labels, loss.totals(labels)), pixel_cross_entropy(scores, labels)
    )
