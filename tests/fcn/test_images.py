import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageOps

from fcn import images
from fcn.errors import (
    UnsupportedImage,
)
from fcn.images import decode_image, image_size
from tests.fcn.image_files import EXIF, LOSSLESS, picture, saved, with_orientation


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


def test_same_result_from_many_threads(jpeg_decoder: str) -> None:
    data = [with_orientation(picture(), image_format, 6) for image_format in EXIF] * 40
    alone = [decode_image(one).pixels for one in data[: len(EXIF)]]
    barrier = threading.Barrier(8)
    with ThreadPoolExecutor(8, initializer=barrier.wait) as threads:
        for number, decoded in enumerate(threads.map(decode_image, data)):
            np.testing.assert_array_equal(decoded.pixels, alone[number % len(EXIF)])
