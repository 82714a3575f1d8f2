"""Masks of every kind become label maps; what no class has is counted."""

import io

import numpy as np
import pytest
from PIL import Image

from fcn.errors import EmptyImage, ImageTooLarge, LabelError, TruncatedImage
from tasks.dataset import DatasetError
from tasks.labels import COLOUR, ClassRow, make_table, packed, read_mask
from tests.tasks.sources import image_bytes, label, mask_bytes


def rows(*names: str) -> list[ClassRow]:
    return [ClassRow(name=name) for name in names]


@pytest.mark.parametrize("palette", [True, False])
def test_palette_and_gray_masks_give_their_values(palette: bool) -> None:
    values = np.array([[0, 1, 37], [255, 254, 2]], np.uint8)
    np.testing.assert_array_equal(read_mask(mask_bytes(values, palette=palette)), values)


def test_deep_gray_masks_give_their_values() -> None:
    values = np.array([[0, 300], [65535, 7]], np.uint16)
    np.testing.assert_array_equal(read_mask(mask_bytes(values, palette=False)), values)


def test_coloured_masks_give_packed_colours() -> None:
    mask = read_mask(mask_bytes(np.array([[[1, 2, 3], [0, 0, 0]]], np.uint8)))
    assert mask.tolist() == [[packed((1, 2, 3)), packed((0, 0, 0))]]
    assert packed((1, 2, 3)) == COLOUR + 0x010203


def test_bad_masks_are_errors() -> None:
    good = mask_bytes(label((64, 64)))
    with pytest.raises(EmptyImage):
        read_mask(b"")
    with pytest.raises(TruncatedImage):
        read_mask(good[: len(good) // 2])
    with pytest.raises(ImageTooLarge):
        read_mask(good, max_pixels=100)
    jpeg = io.BytesIO()
    Image.fromarray(label()).save(jpeg, "JPEG")
    with pytest.raises(LabelError, match="JPEG does not keep class ids"):
        read_mask(jpeg.getvalue())


def test_values_are_ids_in_order_passing_over_ignored_ones() -> None:
    table = make_table(rows("a", "b", "c"), [0, 2], "test")
    ids, unknown = table.to_label(np.array([[0, 1, 2, 3, 4, 255]], np.int32))
    assert ids.tolist() == [[255, 0, 255, 1, 2, 255]]
    assert ids.dtype == np.uint8
    assert unknown == {}
    assert table.known == "1, 3, 4"


def test_unknown_values_are_counted_and_ignored() -> None:
    table = make_table(rows("a", "b"), [], "test")
    ids, unknown = table.to_label(np.array([[0, 1, 2], [37, 37, 65535]], np.int32))
    assert ids.tolist() == [[0, 1, 255], [255, 255, 255]]
    assert unknown == {2: 1, 37: 2, 65535: 1}
    assert table.known == "0..1"


def test_rows_named_void_are_ignored_by_value_and_colour() -> None:
    table = make_table(
        [
            ClassRow(name="Void", colour=(0, 0, 0)),
            ClassRow(name="a", colour=(9, 9, 9)),
            ClassRow(name="b", colour=(8, 8, 8)),
        ],
        [],
        "test",
    )
    assert table.classes.names == ("a", "b")
    assert table.to_label(np.array([[0, 1, 2]], np.int32))[0].tolist() == [[255, 0, 1]]
    colours = np.array([[packed((0, 0, 0)), packed((8, 8, 8)), packed((1, 1, 1))]], np.int32)
    ids, unknown = table.to_label(colours)
    assert ids.tolist() == [[255, 1, 255]]
    assert unknown == {packed((1, 1, 1)): 1}


def test_colours_of_voc_are_known_without_a_table() -> None:
    table = make_table(rows("background", "aeroplane"), [], "test")
    mask = read_mask(mask_bytes(np.array([[[0, 0, 0], [128, 0, 0], [224, 224, 192]]], np.uint8)))
    assert table.to_label(mask)[0].tolist() == [[0, 1, 255]]


def test_given_values_may_be_anything_even_255() -> None:
    table = make_table([ClassRow(name="a", value=0), ClassRow(name="b", value=255)], [], "test")
    assert table.to_label(np.array([[0, 255]], np.int32))[0].tolist() == [[0, 1]]


@pytest.mark.parametrize(
    ("given", "ignored", "message"),
    [
        ([], [], "0 classes; expected 1 to 255"),
        (rows(*map(str, range(256))), [], "256 classes; expected 1 to 255"),
        (rows("a", "a"), [], "more than once"),
        ([ClassRow(name="a", value=1), ClassRow(name="b")], [], "1 of 2 classes have a value"),
        ([ClassRow(name=n, value=1) for n in "ab"], [], "the same value"),
        ([ClassRow(name=n, colour=(1, 1, 1)) for n in "ab"], [], "the same colour"),
        ([ClassRow(name="a", value=3)], [3], "and in ignore_values"),
    ],
)
def test_tables_that_contradict_themselves_are_errors(
    given: list[ClassRow], ignored: list[int], message: str
) -> None:
    with pytest.raises(DatasetError, match=f"^test: .*{message}"):
        make_table(given, ignored, "test")


def test_an_image_is_no_gray_mask() -> None:
    assert read_mask(image_bytes(0)).min() >= COLOUR
