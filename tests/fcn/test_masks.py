import struct
import tracemalloc
import zlib
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from fcn import masks
from fcn.classes import voc_palette
from fcn.errors import (
    CorruptImage,
    EmptyImage,
    FcnError,
    ImageError,
    ImageTooLarge,
    LabelError,
    TruncatedImage,
    UnsupportedImage,
)
from fcn.masks import count_labels, decode_mask, encode_mask

RLE_HEADER = struct.Struct("<4sBIII")
Format = Literal["png", "rle"]

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
labels = st.one_of(hnp.arrays(np.uint8, shapes), hnp.arrays(np.uint16, shapes))
formats = st.sampled_from(["png", "rle"])


def scene(rng: np.random.Generator, height: int = 90, width: int = 120) -> NDArray[np.uint8]:
    blocks = rng.integers(0, 21, (height // 10 + 1, width // 10 + 1), dtype=np.uint8)
    label = np.kron(blocks, np.ones((10, 10), np.uint8))[:height, :width].copy()
    label[:3] = 255
    return label


def saved(image: Image.Image, image_format: str = "PNG", **settings: Any) -> bytes:
    file = BytesIO()
    image.save(file, image_format, **settings)
    return file.getvalue()


@settings(deadline=None, max_examples=200)
@given(labels, formats)
def test_masks_come_back_as_they_were(label: NDArray[Any], mask_format: Format) -> None:
    decoded = decode_mask(encode_mask(label, mask_format=mask_format))
    np.testing.assert_array_equal(decoded, label)
    assert decoded.dtype == label.dtype
    assert decoded.flags.writeable


@pytest.mark.parametrize("mask_format", ["png", "rle"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 1), (1, 70_000), (375, 500)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_all_values_at_awkward_sizes(
    mask_format: Format, shape: tuple[int, int], dtype: Any, rng: np.random.Generator
) -> None:
    noise = rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)
    constant = np.full(shape, np.iinfo(dtype).max, dtype)
    for label in (noise, constant, noise[::-1, ::-1], np.asfortranarray(noise)):
        decoded = decode_mask(encode_mask(label, mask_format=mask_format))
        np.testing.assert_array_equal(decoded, label)


@settings(deadline=None)
@given(hnp.arrays(np.uint8, shapes))
def test_pillow_reads_indices_and_voc_colours(label: NDArray[np.uint8]) -> None:
    with Image.open(BytesIO(encode_mask(label))) as image:
        image.verify()
    with Image.open(BytesIO(encode_mask(label))) as image:
        assert image.mode == "P"
        np.testing.assert_array_equal(np.asarray(image), label)
        colours = np.asarray(voc_palette(256), np.uint8)[label]
        np.testing.assert_array_equal(np.asarray(image.convert("RGB")), colours)


@settings(deadline=None)
@given(hnp.arrays(np.uint16, shapes))
def test_pillow_reads_uint16_as_16_bit_gray(label: NDArray[np.uint16]) -> None:
    with Image.open(BytesIO(encode_mask(label))) as image:
        assert image.mode == "I;16"
        np.testing.assert_array_equal(np.asarray(image), label)


@pytest.mark.parametrize(
    ("ids", "num_colours"), [([0, 1], 3), ([0, 7], 8), ([2, 255], 256), ([0], 3)]
)
def test_palette_is_as_long_as_needed(ids: list[int], num_colours: int) -> None:
    palette = [(1, 2, 3), (4, 5, 6), (7, 8, 9)]
    data = encode_mask(np.array([ids], np.uint8), palette)
    (length,) = struct.unpack_from(">I", data, data.index(b"PLTE") - 4)
    assert length == 3 * num_colours
    with Image.open(BytesIO(data)) as image:
        colours = np.asarray(image.convert("RGB"))[0]
    expected = [(*palette, *voc_palette(256)[3:])[i] for i in ids]
    np.testing.assert_array_equal(colours, expected)
    if 255 in ids:
        assert tuple(colours[-1]) == (224, 224, 192)


@given(labels, st.sampled_from([1, 21, 256, 300]))
def test_pixels_are_counted_as_by_a_loop(label: NDArray[Any], num_classes: int) -> None:
    counts = count_labels(label, num_classes)
    assert len(counts) == max(num_classes, 1 + int(label.max()))
    assert all(count == int((label == index).sum()) for index, count in enumerate(counts[:400]))
    assert sum(counts) == label.size


def test_pixels_of_many_strips_are_counted(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(masks, "_STRIP_PIXELS", 1000)
    for dtype in (np.uint8, np.uint16):
        label = scene(rng).astype(dtype)
        assert count_labels(label, 21) == np.bincount(label.ravel(), minlength=21).tolist()


def test_run_lengths_are_as_the_module_says() -> None:
    label = np.array([[5, 5, 5], [5, 9, 9]], np.uint8)
    data = encode_mask(label, mask_format="rle")
    assert RLE_HEADER.unpack_from(data) == (b"FCNR", 1, 2, 3, 2)
    assert zlib.decompress(data[RLE_HEADER.size :]) == bytes([5, 9, 4, 2])
    long = encode_mask(np.zeros((1, 300), np.uint16), mask_format="rle")
    assert zlib.decompress(long[RLE_HEADER.size :]) == bytes([0, 0, 0b10101100, 0b10])


def test_run_lengths_are_the_smaller_form(rng: np.random.Generator) -> None:
    label = scene(rng)
    assert len(encode_mask(label, mask_format="rle")) < 0.8 * len(encode_mask(label))


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (np.zeros((2, 2), np.int64), "uint8 or uint16; found int64"),
        (np.zeros((2, 2), np.float32), "found float32"),
        (np.zeros((2, 2), np.bool_), "found bool"),
        (np.zeros((2, 2, 3), np.uint8), r"H x W, at least 1 x 1; found shape \(2, 2, 3\)"),
        (np.zeros((0, 4), np.uint8), r"found shape \(0, 4\)"),
    ],
)
@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_what_is_no_label_map_is_refused(
    label: NDArray[Any], message: str, mask_format: Format
) -> None:
    with pytest.raises(LabelError, match=message):
        encode_mask(label, mask_format=mask_format)


def test_wrong_arguments() -> None:
    label = np.zeros((2, 2), np.uint8)
    with pytest.raises(ValueError, match="at most 256 colours, found 257"):
        encode_mask(label, [(0, 0, 0)] * 257)
    with pytest.raises(ValueError, match="'png' or 'rle', found 'gif'"):
        encode_mask(label, mask_format="gif")  # type: ignore[arg-type]


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_indices_and_gray_values_of_other_writers(
    image_format: str, mode: str, rng: np.random.Generator
) -> None:
    label = scene(rng)
    image = Image.fromarray(label)
    if mode == "P":
        image.putpalette(rng.integers(0, 256, 768).tolist())
    settings = {"optimize": False} if image_format == "GIF" else {}
    np.testing.assert_array_equal(decode_mask(saved(image, image_format, **settings)), label)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_palette_indices_below_8_bits(bits: int, rng: np.random.Generator) -> None:
    label = rng.integers(0, 2**bits, (5, 13), np.uint8)
    image = Image.fromarray(label)
    image.putpalette(list(range(3 * 2**bits)))
    np.testing.assert_array_equal(decode_mask(saved(image, bits=bits)), label)


def test_one_bit_gray_is_0_and_1() -> None:
    label = np.array([[False, True, True]])
    decoded = decode_mask(saved(Image.fromarray(label)))
    np.testing.assert_array_equal(decoded, [[0, 1, 1]])
    assert decoded.dtype == np.uint8


def test_transparent_palette_entries_keep_their_index() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette(list(range(9)))
    np.testing.assert_array_equal(decode_mask(saved(image, transparency=1)), [[0, 1, 2]])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colours_are_no_class_ids(mode: str) -> None:
    with pytest.raises(LabelError, match=f"mask is {mode}; expected a palette or gray image"):
        decode_mask(saved(Image.new(mode, (4, 4))))


def test_lossy_masks_are_refused() -> None:
    with pytest.raises(LabelError, match="JPEG does not keep class ids; save masks as PNG"):
        decode_mask(saved(Image.new("L", (4, 4)), "JPEG"))


def test_values_beyond_16_bits_are_no_class_ids() -> None:
    wide = Image.fromarray(np.array([[-1, 70_000]], np.int32))
    with pytest.raises(LabelError, match=r"from -1 to 70000; class ids are 0\.\.65535"):
        decode_mask(saved(wide, "TIFF"))


def test_bytes_that_are_no_mask() -> None:
    with pytest.raises(EmptyImage):
        decode_mask(b"")
    with pytest.raises(UnsupportedImage, match="no decoder knows this format"):
        decode_mask(b"garbage, not a mask at all")


@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_cut_masks(mask_format: Format, rng: np.random.Generator) -> None:
    data = encode_mask(scene(rng), mask_format=mask_format)
    for length in (10, len(data) // 2):
        with pytest.raises(TruncatedImage, match="truncated"):
            decode_mask(data[:length])


@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_size_is_checked_before_decoding(mask_format: Format) -> None:
    data = encode_mask(np.zeros((40, 50), np.uint8), mask_format=mask_format)
    assert decode_mask(data, max_pixels=2000).shape == (40, 50)
    with pytest.raises(ImageTooLarge, match="40 x 50 pixels"):
        decode_mask(data, max_pixels=1999)
    huge = RLE_HEADER.pack(b"FCNR", 1, 2**32 - 1, 2**32 - 1, 1) + zlib.compress(b"\0\1")
    with pytest.raises(ImageTooLarge):
        decode_mask(huge)


@pytest.mark.parametrize("mask_format", ["png", "rle"])
def test_every_flipped_bit_is_noticed_or_harmless(mask_format: Format) -> None:
    """zlib's and PNG's checksums cover the ids; a palette entry is none."""
    label = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3), np.ones((4, 5), np.uint8))
    data = encode_mask(label, mask_format=mask_format)
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        try:
            decoded = decode_mask(bytes(damaged), max_pixels=100_000)
        except FcnError:
            continue
        np.testing.assert_array_equal(decoded, label)


def rle(itemsize: int, height: int, width: int, num_runs: int, body: bytes) -> bytes:
    return RLE_HEADER.pack(b"FCNR", itemsize, height, width, num_runs) + zlib.compress(body)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(rle(1, 2, 3, 2, bytes([5, 9, 4, 3])), id="runs beyond the pixels"),
        pytest.param(rle(1, 2, 3, 2, bytes([5, 9, 4, 1])), id="runs short of the pixels"),
        pytest.param(rle(1, 2, 3, 2, bytes([5, 9, 6, 0])), id="an empty run"),
        pytest.param(rle(1, 2, 3, 3, bytes([5, 9, 4, 2])), id="fewer runs than announced"),
        pytest.param(rle(1, 2, 3, 1, bytes([5, 4, 2])), id="more runs than announced"),
        pytest.param(rle(1, 2, 3, 1, bytes([5])), id="values without runs"),
        pytest.param(rle(1, 2, 3, 1, b""), id="nothing packed"),
        pytest.param(rle(1, 2, 3, 1, bytes([5, 0x86])), id="a varint without its end"),
        pytest.param(rle(1, 2, 3, 1, bytes([5, *[0x80] * 5, 0])), id="a varint of 6 bytes"),
        pytest.param(rle(1, 2, 3, 0, b""), id="no run"),
        pytest.param(rle(1, 2, 3, 7, bytes(14)), id="more runs than pixels"),
        pytest.param(rle(1, 0, 3, 1, bytes([5, 0])), id="no rows"),
        pytest.param(rle(3, 2, 3, 1, bytes([5, 5, 5, 6])), id="3-byte values"),
        pytest.param(rle(1, 2, 3, 1, bytes(10_000_000)), id="a bomb"),
        pytest.param(rle(1, 2, 3, 1, bytes([5, 6]))[:-2] + b"ab", id="wrong checksum"),
        pytest.param(rle(1, 2, 3, 1, bytes([5, 6])) + b"more", id="bytes after the end"),
        pytest.param(b"FCNR" + bytes(13) + b"not zlib", id="not packed"),
        pytest.param(b"FCNR", id="magic alone"),
    ],
)
def test_wrong_run_lengths(data: bytes) -> None:
    with pytest.raises((CorruptImage, TruncatedImage), match="run lengths"):
        decode_mask(data)


@pytest.mark.parametrize("ending", [b"\1", b"\x81\x80\x80\x80\0"])
def test_memory_for_run_lengths_is_in_proportion_to_the_pixels(ending: bytes) -> None:
    """A run a pixel, its length in one byte and in five."""
    side = 1500
    data = rle(1, side, side, side**2, bytes(side**2) + ending * side**2)
    tracemalloc.start()
    try:
        label = decode_mask(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert not label.any()
    assert peak < 6 * label.size


def test_run_lengths_of_many_pieces_come_back(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in (1, 300):
        monkeypatch.setattr(masks, "_PIECE_BYTES", size)
        for label in (scene(rng, 30, 40), rng.integers(0, 999, (20, 30), np.uint16)):
            data = encode_mask(label, mask_format="rle")
            np.testing.assert_array_equal(decode_mask(data), label)
            with pytest.raises(CorruptImage, match="more than the"):
                decode_mask(data + bytes(size))


@given(st.lists(st.integers(1, 2**35 - 1), min_size=1, max_size=9), st.integers(1, 9))
def test_numbers_are_read_across_the_ends_of_pieces(numbers: list[int], size: int) -> None:
    data = masks._varints(np.array(numbers))
    pieces = [data[start : start + size] for start in range(0, len(data), size)]
    assert np.concatenate(list(masks._from_varints(pieces))).tolist() == numbers


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"FCNR"]), st.booleans())
def test_any_bytes_give_a_label_map_or_an_error(body: bytes, start: bytes, packed: bool) -> None:
    if packed and start == b"FCNR":
        body = body[:13].ljust(13, b"\0") + zlib.compress(body[13:])
    try:
        decoded = decode_mask(start + body, max_pixels=100_000)
    except (ImageError, LabelError):
        return
    assert decoded.ndim == 2


@settings(deadline=None, max_examples=300)
@given(
    st.sampled_from([1, 2]),
    st.integers(0, 4),
    st.integers(0, 4),
    st.integers(0, 5),
    st.lists(st.sampled_from([0, 1, 2, 4, 128, 130, 255]), max_size=14),
)
def test_plausible_run_lengths_give_a_label_map_of_that_size_or_an_error(
    itemsize: int, height: int, width: int, num_runs: int, body: list[int]
) -> None:
    try:
        decoded = decode_mask(rle(itemsize, height, width, num_runs, bytes(body)))
    except ImageError:
        return
    assert decoded.shape == (height, width)
