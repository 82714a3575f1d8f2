import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

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

LOSSLESS = ["PNG", "BMP", "TIFF", "GIF", "PPM", "WEBP", "QOI", "TGA"]
EXIF = ["JPEG", "PNG", "TIFF", "WEBP"]


def picture(height: int = 40, width: int = 56, mode: str = "RGB") -> Image.Image:
    """A picture of few colours, so that GIF keeps it, with no symmetry."""
    rows, columns = np.mgrid[:height, :width]
    pixels = np.stack([rows // 4 * 20, columns // 4 * 10, (rows + columns) // 16 * 30], -1)
    return Image.fromarray((pixels % 256).astype(np.uint8)).convert(mode)


def saved(image: Image.Image, image_format: str, **settings: Any) -> bytes:
    if image_format == "WEBP":
        settings = {"lossless": True, **settings}
    file = BytesIO()
    image.save(file, image_format, **settings)
    return file.getvalue()


def with_orientation(image: Image.Image, image_format: str, orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(image, image_format, exif=exif)


def png_header(height: int, width: int) -> bytes:
    """A PNG that announces this size and holds no pixels worth speaking of."""
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(b"\0")),
        (b"IEND", b""),
    ]
    packed = (
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


@pytest.fixture(params=["simplejpeg", "pillow"])
def jpeg_decoder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test runs with the optional decoder and as if it were not installed."""
    if request.param == "pillow":
        monkeypatch.setattr(images, "simplejpeg", None)
    else:
        pytest.importorskip("simplejpeg")
    return str(request.param)


@pytest.mark.parametrize("image_format", LOSSLESS)
def test_pixels_of_lossless_formats_come_back_exactly(image_format: str) -> None:
    decoded = decode_image(saved(picture(), image_format))
    np.testing.assert_array_equal(decoded.pixels, np.asarray(picture()))
    assert not decoded.truncated


@pytest.mark.parametrize("image_format", ["JPEG", "AVIF", "JPEG2000"])
def test_pixels_of_lossy_formats_come_back_nearly(image_format: str) -> None:
    if image_format == "AVIF" and "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    pixels = decode_image(saved(picture(), image_format)).pixels
    assert np.abs(pixels.astype(int) - np.asarray(picture())).mean() < 12


def test_pixels_are_contiguous_and_writable(jpeg_decoder: str) -> None:
    for orientation in (1, 6):
        pixels = decode_image(with_orientation(picture(), "JPEG", orientation)).pixels
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable
        assert pixels.dtype == np.uint8


@pytest.mark.parametrize("settings", [{}, {"progressive": True}, {"subsampling": 0}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_both_jpeg_decoders_give_the_same_pixels(
    mode: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("simplejpeg")
    data = saved(picture(mode=mode), "JPEG", **settings)
    fast = decode_image(data).pixels
    monkeypatch.setattr(images, "simplejpeg", None)
    np.testing.assert_array_equal(fast, decode_image(data).pixels)


@pytest.mark.parametrize("image_format", EXIF)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied(image_format: str, orientation: int, jpeg_decoder: str) -> None:
    data = with_orientation(picture(), image_format, orientation)
    plain = Image.fromarray(decode_image(saved(picture(), image_format)).pixels)
    exif = plain.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    upright = ImageOps.exif_transpose(plain)
    pixels = decode_image(data).pixels
    np.testing.assert_array_equal(pixels, np.asarray(upright))
    assert image_size(data) == pixels.shape[:2] == upright.size[::-1]


def test_orientation_of_xmp_alone_counts_too(jpeg_decoder: str) -> None:
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    assert image_size(saved(picture(), "JPEG", xmp=xmp)) == (56, 40)
    assert decode_image(saved(picture(), "JPEG", xmp=xmp)).pixels.shape == (56, 40, 3)


def test_damaged_exif_does_not_cost_the_image(jpeg_decoder: str, rng: np.random.Generator) -> None:
    data = with_orientation(picture(), "JPEG", 6)
    start = data.index(b"Exif\0\0") + 6
    for _ in range(200):
        damaged = bytearray(data)
        place = start + int(rng.integers(20))
        damaged[place] = int(rng.integers(256))
        assert decode_image(bytes(damaged)).pixels.shape in {(40, 56, 3), (56, 40, 3)}


@pytest.mark.parametrize(
    ("mode", "image_format"),
    [
        ("1", "PNG"),
        ("L", "PNG"),
        ("LA", "PNG"),
        ("P", "PNG"),
        ("P", "GIF"),
        ("RGBA", "PNG"),
        ("RGBA", "TIFF"),
        ("RGBA", "WEBP"),
        ("CMYK", "TIFF"),
        ("CMYK", "JPEG"),
        ("YCbCr", "TIFF"),
        ("LAB", "TIFF"),
    ],
)
def test_every_mode_becomes_rgb(mode: str, image_format: str) -> None:
    if mode == "LAB":
        lab = np.full((40, 56, 3), (53, 80, 67), np.uint8) + np.uint8(0)
        image = Image.frombytes("LAB", (56, 40), lab.tobytes())
    else:
        image = picture(mode=mode)
    decoded = decode_image(saved(image, image_format)).pixels
    assert decoded.shape == (40, 56, 3)
    assert np.ptp(decoded) > 0


def test_alpha_is_dropped_not_blended() -> None:
    pixels = np.full((3, 5, 4), (200, 100, 50, 0), np.uint8)
    decoded = decode_image(saved(Image.fromarray(pixels), "PNG")).pixels
    assert (decoded == (200, 100, 50)).all()


def test_transparent_palette_keeps_its_colours() -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    expected = [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]]
    for transparency in (1, bytes([0, 128, 255])):
        data = saved(image, "PNG", transparency=transparency)
        np.testing.assert_array_equal(decode_image(data).pixels, expected)


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bit_gray_is_scaled(image_format: str) -> None:
    gray = np.array([[0, 128, 129, 257, 32768, 65278, 65535]], np.uint16)
    pixels = decode_image(saved(Image.fromarray(gray), image_format)).pixels
    np.testing.assert_array_equal(pixels[0, :, 0], [0, 0, 1, 1, 128, 254, 255])
    assert (pixels == pixels[:, :, :1]).all()


def test_float_and_wide_integers_are_refused() -> None:
    for gray in (np.full((2, 2), 0.5, np.float32), np.full((2, 2), 70_000, np.int32)):
        with pytest.raises(UnsupportedImage, match=r"range|70000"):
            decode_image(saved(Image.fromarray(gray), "TIFF"))


def test_first_frame_of_an_animation() -> None:
    other = Image.new("RGB", (56, 40), (255, 0, 0))
    data = saved(picture(), "GIF", save_all=True, append_images=[other])
    np.testing.assert_array_equal(decode_image(data).pixels, np.asarray(picture()))


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


def test_same_result_from_many_threads(jpeg_decoder: str) -> None:
    data = [with_orientation(picture(), image_format, 6) for image_format in EXIF] * 40
    alone = [decode_image(one).pixels for one in data[: len(EXIF)]]
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8, initializer=barrier.wait) as threads:
        for number, decoded in enumerate(threads.map(decode_image, data)):
            np.testing.assert_array_equal(decoded.pixels, alone[number % len(EXIF)])


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
