"""Files that are cut, damaged or too large: an image as far as it goes, or an `ImageError`."""

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from fcn import images
from fcn.errors import (
    CorruptImage,
    EmptyImage,
    ImageError,
    ImageTooLarge,
    TruncatedImage,
    UnsupportedImage,
)
from fcn.images import MAX_PIXELS, decode_image, image_size
from tests.fcn.image_files import EXIF, picture, png_header, saved, with_orientation


def test_zero_bytes() -> None:
    with pytest.raises(EmptyImage, match="zero bytes"):
        decode_image(b"")
    with pytest.raises(EmptyImage):
        image_size(b"")


@pytest.mark.parametrize("data", [b"<!DOCTYPE html>", b"\0" * 64, b"%!PS-Adobe-3.0 EPSF-3.0\n"])
def test_unknown_bytes_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="no decoder knows this format; it starts with b'"):
        decode_image(data)


def test_a_header_that_cannot_be_read_is_corrupt() -> None:
    data = saved(picture(), "PNG")
    with pytest.raises(CorruptImage, match="corrupt PNG"):
        decode_image(data[:8] + b"\0" * 8 + data[16:])


@pytest.mark.parametrize("settings", [{}, {"progressive": True}])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncated_jpeg(jpeg_decoder: str, mode: str, settings: dict[str, Any]) -> None:
    data = saved(picture(400, 560, mode), "JPEG", **settings)
    cut = data[: len(data) * 2 // 3]
    with pytest.raises(TruncatedImage, match=rf"^truncated JPEG: it ends after {len(cut):,} byt"):
        decode_image(cut)
    decoded = decode_image(cut, lenient=True)
    assert decoded.truncated
    assert decoded.pixels.shape == (400, 560, 3)
    whole = decode_image(data, lenient=True)
    assert not whole.truncated
    if not settings:  # a baseline JPEG is whole as far as it goes
        np.testing.assert_array_equal(decoded.pixels[:120], whole.pixels[:120])


def test_lenient_jpegs_are_the_same_with_both_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("simplejpeg")
    data = with_orientation(picture(400, 560), "JPEG", 8)[:-900]
    fast = decode_image(data, lenient=True).pixels
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(fast, decode_image(data, lenient=True).pixels)


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_lossless_image(image_format: str) -> None:
    settings = {"interlace": 0} if image_format == "GIF" else {}
    data = saved(picture(400, 560), image_format, **settings)
    cut = data[: len(data) * 2 // 3]
    if image_format == "TIFF":  # its directory comes last, and without it nothing is known
        cut = data[:-100]
    with pytest.raises(TruncatedImage, match="truncated"):
        decode_image(cut)
    decoded = decode_image(cut, lenient=True)
    assert decoded.truncated
    assert decoded.pixels.shape == (400, 560, 3)
    start = {"BMP": slice(-100, None)}.get(image_format, slice(100))  # BMPs stand on their head
    np.testing.assert_array_equal(decoded.pixels[start], decode_image(data).pixels[start])


@pytest.mark.parametrize("image_format", ["WEBP", "JPEG2000"])
def test_formats_that_give_no_part_stay_truncated(image_format: str) -> None:
    data = saved(picture(400, 560), image_format)
    with pytest.raises(TruncatedImage):
        decode_image(data[: len(data) // 2], lenient=True)


def test_a_file_cut_in_its_header_is_truncated_even_leniently(jpeg_decoder: str) -> None:
    data = saved(picture(), "JPEG")
    for length in (3, 20, 160):
        with pytest.raises(TruncatedImage):
            decode_image(data[:length], lenient=True)


def test_truncated_turned_tiff_stands_upright() -> None:
    data = with_orientation(picture(400, 560), "TIFF", 6)
    pixels_end = data.index(np.asarray(picture(400, 560)).tobytes()) + 400 * 560 * 3
    if pixels_end != len(data):
        pytest.skip("Pillow wrote the directory after the pixels")
    decoded = decode_image(data[:-5000], lenient=True)
    assert decoded.pixels.shape == (560, 400, 3)


def test_jpeg_pixel_data_that_end_too_early_are_corrupt() -> None:
    pytest.importorskip("simplejpeg")
    data = bytearray(saved(picture(400, 560), "JPEG"))
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd9"  # an end mark where pixels were
    with pytest.raises(CorruptImage, match=r"^corrupt JPEG: premature end of data segment$"):
        decode_image(bytes(data))


def test_jpeg_pixel_data_that_are_too_long_are_corrupt() -> None:
    pytest.importorskip("simplejpeg")
    data = saved(picture(400, 560), "JPEG")
    with pytest.raises(CorruptImage, match=r"^corrupt JPEG: \d+ extraneous bytes before marker"):
        decode_image(data[:-2] + b"123456789" + data[-2:])


def test_every_flipped_bit_of_a_png_is_noticed_where_it_changes_pixels() -> None:
    data, expected = saved(picture(), "PNG"), np.asarray(picture())
    for place in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[place // 8] ^= 1 << place % 8
        try:
            pixels = decode_image(bytes(damaged)).pixels
        except ImageError:
            continue
        np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("read", [decode_image, image_size])
def test_size_is_checked_before_decoding(read: Any, jpeg_decoder: str) -> None:
    message = "40 x 56 pixels .height x width., above the limit of 2,239"
    for image_format in ("JPEG", "PNG"):
        data = saved(picture(), image_format)
        with pytest.raises(ImageTooLarge, match=message):
            read(data, max_pixels=2239)
        read(data, max_pixels=2240)
    with pytest.raises(ImageTooLarge):
        read(png_header(100_000, 100_000))
    with pytest.raises(ImageTooLarge):
        read(png_header(100_000, 100_000), max_pixels=10**12)


def test_default_limit_is_pillows_own() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert MAX_PIXELS == 2 * Image.MAX_IMAGE_PIXELS


def test_no_warning_escapes_below_the_limit() -> None:
    """Between half the limit and the limit Pillow warns, and tests turn warnings to errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(png_header(13_000, 13_000)) == (13_000, 13_000)


@pytest.mark.parametrize("lenient", [False, True])
@pytest.mark.parametrize(
    "image_format", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000"]
)
def test_mutated_bytes_give_an_image_or_an_image_error(
    image_format: str, lenient: bool, jpeg_decoder: str, rng: np.random.Generator
) -> None:
    if image_format == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    exif = {"exif": _orientation_exif()} if image_format in EXIF else {}
    data = saved(picture(24, 32), image_format, **exif)
    reasons = set()
    for damaged in _mutations(data, rng, 300):
        try:
            decoded = decode_image(damaged, max_pixels=1_000_000, lenient=lenient)
        except ImageError as error:
            reasons.add(str(error))
            continue
        assert decoded.pixels.shape == (*image_size(damaged), 3)
    assert reasons
    for reason in reasons:  # each becomes a table cell: one line, the same on every run
        assert "\n" not in reason
        assert " object at 0x" not in reason


def test_a_jpeg_cut_anywhere_gives_no_stale_memory(rng: np.random.Generator) -> None:
    """Some cuts are fatal to a decoder, which then leaves its output buffer untouched."""
    data = saved(picture(96, 120), "JPEG", progressive=True)
    whole = decode_image(data).pixels.astype(int)
    for length in range(data.index(b"\xff\xda") + 20, len(data) - 2, 11):
        pixels = decode_image(data[:length], lenient=True).pixels
        assert np.abs(pixels - whole).mean() < 110
        np.testing.assert_array_equal(pixels, decode_image(data[:length], lenient=True).pixels)


def _orientation_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return exif


def _mutations(data: bytes, rng: np.random.Generator, number: int) -> Iterator[bytes]:
    """Single bytes replaced, runs overwritten, parts removed or repeated, ends cut off."""
    for turn in range(number):
        damaged = bytearray(data)
        # Half of the blows go to the first 200 bytes, where headers are.
        start = int(rng.integers(len(data) if turn % 2 else min(200, len(data))))
        length = int(rng.integers(1, 20))
        match turn % 5:
            case 0 | 1:
                damaged[start] = int(rng.integers(256))
            case 2:
                damaged[start : start + length] = rng.bytes(length)
            case 3:
                del damaged[start : start + length]
            case 4:
                del damaged[start:]
        yield bytes(damaged)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe0", b"BM", b"II*\0", b"P6 "])
)
def test_any_bytes_give_an_image_or_an_image_error(body: bytes, start: bytes) -> None:
    try:
        decoded = decode_image(start + body, max_pixels=100_000)
    except ImageError:
        return
    assert image_size(start + body) == decoded.pixels.shape[:2]
