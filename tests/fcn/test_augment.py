import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn.augment import Augment

SIZES = st.tuples(st.integers(1, 70), st.integers(1, 70))


def drawn(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pair(height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """An image whose channels tell each pixel's class: they must move together."""
    label = torch.arange(height * width).reshape(height, width) // 7 % 3
    return (label * 100).to(torch.uint8).expand(3, -1, -1).clone(), label


@settings(max_examples=60, deadline=None)
@given(size=SIZES, crop=SIZES, seed=st.integers(0, 2**40), vary=st.booleans())
def test_a_crop_has_its_size_and_known_labels(
    size: tuple[int, int], crop: tuple[int, int], seed: int, vary: bool
) -> None:
    image, label = Augment(crop, 255, vary=vary)(*pair(*size), drawn(seed))
    assert image.shape == (3, *crop)
    assert label.shape == crop
    assert image.dtype == torch.uint8
    assert set(label.unique().tolist()) <= {0, 1, 2, 255}


@pytest.mark.parametrize("seed", range(10))
def test_image_and_label_move_together(seed: int) -> None:
    image, label = Augment((20, 30), 255, vary=False)(*pair(40, 50), drawn(seed))
    assert torch.equal(image[0].long(), label * 100)


def test_flips_and_scales_keep_image_and_label_together() -> None:
    image = torch.zeros(3, 64, 64, dtype=torch.uint8)
    label = torch.zeros(64, 64, dtype=torch.int64)
    image[:, :, 40:], label[:, 40:] = 200, 1
    for seed in range(20):
        out, out_label = Augment((48, 48), 255, vary=True)(image, label, drawn(seed))
        known = out_label != 255
        bright = out.float().mean(dim=0) > 60
        assert (bright == (out_label == 1))[known].float().mean() > 0.95


def test_small_images_are_padded_with_the_ignored_label() -> None:
    image, label = Augment((10, 12), 255, vary=False)(*pair(4, 5), drawn(0))
    assert label[:4, :5].ne(255).all()
    assert label[4:].eq(255).all()
    assert label[:, 5:].eq(255).all()
    assert not image[:, 4:].any()


def test_padding_stays_black_whatever_the_colours() -> None:
    image, label = torch.full((3, 4, 5), 200, dtype=torch.uint8), torch.ones(4, 5).long()
    for seed in range(20):
        out, out_label = Augment((12, 14), 255, vary=True)(image, label, drawn(seed))
        assert out[:, out_label == 255].eq(0).all()
        assert out[:, out_label == 1].gt(0).all()


def test_the_same_generator_gives_the_same_pair() -> None:
    augment = Augment((20, 20), 255, vary=True)
    one, two, other = (augment(*pair(40, 50), drawn(seed)) for seed in (3, 3, 4))
    assert all(map(torch.equal, one, two))
    assert not torch.equal(one[0], other[0])


def test_whole_images_keep_their_size() -> None:
    image, label = Augment(None, 255, vary=True)(*pair(33, 47), drawn(0))
    assert image.shape == (3, 33, 47)
    assert label.shape == (33, 47)


def test_random_state_of_the_caller_is_untouched() -> None:
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    Augment((20, 20), 255, vary=True)(*pair(40, 50), drawn(0))
    assert torch.equal(torch.rand(1), expected)
