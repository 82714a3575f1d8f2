"""Image bytes to pixels: any size, any origin, one kind of error.

Plain JPEGs are decoded by simplejpeg where it is installed (faster, frees the interpreter
lock, notices damage), everything else by Pillow: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM,
QOI, TGA, TIFF, WebP. Both give the same pixels. All functions may be called from many threads.

Damage is an error as far as a format shows it: cut files, data that cannot be unpacked, wrong
checksums in a PNG and, with simplejpeg, pixel data too short or too long in a JPEG.
Uncompressed formats show none.
"""

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile

from fcn.errors import CorruptImage, TruncatedImage, UnsupportedImage
from fcn.pillow import JPEG_END, MAX_PIXELS, check_size, image_error, opened, truncated_image

try:
    import simplejpeg
except ImportError:  # it comes with the extra `pipeline`
    simplejpeg = None

__all__ = ["MAX_PIXELS", "DecodedImage", "decode_image", "image_size"]

# How to turn stored pixels H x W upright, by EXIF orientation.
_UPRIGHT: dict[object, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.T,
    6: lambda pixels: pixels[::-1].T,
    7: lambda pixels: pixels[::-1, ::-1].T,
    8: lambda pixels: pixels[:, ::-1].T,
}
_TURNED = frozenset({5, 6, 7, 8})  # orientations that swap height and width

# Modes that Pillow makes RGB of only by way of another one.
_OPAQUE = {"PA": "RGBA", "La": "LA", "RGBa": "RGBA"}

_STRIP_PIXELS = 1_000_000

# What starts a Huffman table, a scan, a quantization table, a restart interval.
_JPEG_TABLES = (b"\xff\xc4", b"\xff\xda", b"\xff\xdb", b"\xff\xdd")

# Without one of these no file but a TIFF has an orientation.
_EXIF_MARKS = (b"Exif", b"eXIf", b"EXIF", b"type exif", b"tiff:Orientation")


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedImage:
    """An upright image.

    Attributes:
        pixels: RGB, H x W x 3, contiguous and writable; with bands, see `fcn.bands.stack`.
        truncated: The bytes ended early; the rest of the pixels is the decoder's filling
            (gray in JPEGs, black elsewhere).
    """

    pixels: NDArray[Any]
    truncated: bool


def decode_image(
    data: bytes, *, max_pixels: int = MAX_PIXELS, lenient: bool = False
) -> DecodedImage:
    """Decode an image as people see it: RGB, EXIF orientation applied.

    Gray becomes RGB, 16-bit gray is scaled to 8 bits, alpha is dropped, CMYK converted; of
    several frames the first is taken.

    Args:
        data: The file's bytes.
        max_pixels: Limit of height x width, checked on the header before decoding.
        lenient: Accept a file that ends early, as far as it goes.

    Raises:
        EmptyImage: zero bytes.
        UnsupportedImage: a format no decoder knows, or pixels without a known range.
        CorruptImage: a known format, damaged.
        TruncatedImage: a known format, cut short; with `lenient`, cut before the first pixel.
        ImageTooLarge: more pixels than `max_pixels`, than Pillow allows, or than memory holds.
    """
    if simplejpeg is not None and data.startswith(b"\xff\xd8\xff"):
        decoded = _decode_plain_jpeg(data, max_pixels)
        if decoded is not None:
            return decoded
    return _decode_with_pillow(data, max_pixels, lenient)


def image_size(data: bytes, *, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """Height and width that `decode_image` gives, read from the header.

    Raises:
        ImageError: as `decode_image`, as far as the header shows it.
    """
    with opened(data, max_pixels) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF upright already.
        turned = image.format != "TIFF" and _orientation(image, data) in _TURNED
    return (width, height) if turned else (height, width)


def check_png(data: bytes) -> None:
    """Compare the checksums of a PNG's pixel data, which Pillow skips.

    Raises:
        CorruptImage: a checksum does not fit.
    """
    view, offset = memoryview(data), 8
    while offset + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, offset)
        end = offset + 8 + length
        if kind == b"IDAT" and end + 4 <= len(data):
            (checksum,) = struct.unpack_from(">I", data, end)
            if zlib.crc32(view[offset + 4 : end]) != checksum:
                raise CorruptImage(
                    f"corrupt PNG: wrong checksum of the pixel data at byte {offset:,}"
                )
        offset = end + 4


def _decode_plain_jpeg(data: bytes, max_pixels: int) -> DecodedImage | None:
    """Decode a gray or RGB JPEG; None for what Pillow must look at."""
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # a key error where it finds no colour space
        return None
    if colours not in {"YCbCr", "RGB", "Gray"}:
        return None
    check_size(height, width, max_pixels)
    try:
        # Strict always: `strict=False` returns memory as it finds it after a fatal error.
        pixels = simplejpeg.decode_jpeg(data, "RGB")
    except (ValueError, MemoryError) as error:
        found = image_error(error, data)
        if isinstance(found, CorruptImage) and "Corrupt JPEG data" in str(error):
            raise found from error
        return None
    return DecodedImage(pixels=_upright(pixels, _jpeg_orientation(data)), truncated=False)


def _decode_with_pillow(data: bytes, max_pixels: int, lenient: bool) -> DecodedImage:
    with opened(data, max_pixels) as image:
        if image.format == "PNG":
            check_png(data)
        truncated = _load(image, lenient)
        if truncated and image.format in {"JPEG", "MPO"}:
            return _decode_ended_jpeg(data, max_pixels)
        # The orientation comes last: loading a TIFF applies it and removes it.
        return DecodedImage(
            pixels=_upright(_rgb(image), _orientation(image, data)), truncated=truncated
        )


def _decode_ended_jpeg(data: bytes, max_pixels: int) -> DecodedImage:
    """Give a JPEG its end, as Pillow's process-wide LOAD_TRUNCATED_IMAGES does, and decode it."""
    start = max(data.rfind(marker) for marker in _JPEG_TABLES)
    length = max(2, int.from_bytes(data[start + 2 : start + 4], "big"))
    whole = len(data) if start + 2 + length <= len(data) else start  # without a cut table
    try:
        ended = _decode_with_pillow(data[:whole] + JPEG_END, max_pixels, lenient=False)
    except (CorruptImage, TruncatedImage) as error:
        raise truncated_image(data) from error
    return DecodedImage(pixels=ended.pixels, truncated=True)


def _load(image: ImageFile.ImageFile, lenient: bool) -> bool:
    """Decode the pixels; True if they end early and that is accepted."""
    try:
        image.load()
    except OSError as error:
        if not lenient or "truncated" not in str(error):
            raise
        image.tile = []  # nothing more to read: keep the rows that were decoded
        return True
    return False


def _rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Pixels of a decoded image, H x W x 3, without alpha."""
    if image.mode == "F":
        raise UnsupportedImage("floating-point pixels have no known range; convert them to 8 bits")
    if image.mode.startswith("I"):
        return np.repeat(_eight_bits(np.asarray(image))[:, :, None], 3, axis=2)
    image.info.pop("transparency", None)  # Pillow would look for its colour in the palette
    width, height = image.im.size  # a truncated TIFF is not yet turned, whatever its size says
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP_PIXELS // width)
    for top in range(0, height, rows):  # Pillow's copies are as large as what they are of
        strip = image.crop((0, top, width, min(top + rows, height)))
        if strip.mode in _OPAQUE:
            strip = strip.convert(_OPAQUE[strip.mode])
        pixels[top : top + rows] = np.asarray(strip.convert("RGB"))
    return pixels


def _eight_bits(gray: NDArray[Any]) -> NDArray[np.uint8]:
    """16-bit gray scaled to 8 bits; Pillow's own conversion cuts off above 255."""
    low, high = int(gray.min()), int(gray.max())
    if low < 0 or high > 65535:
        raise UnsupportedImage(f"gray values from {low} to {high}; at most 16 bits are known")
    return ((gray.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _upright(pixels: NDArray[np.uint8], orientation: object) -> NDArray[np.uint8]:
    turn = _UPRIGHT.get(orientation)
    if turn is None:
        return pixels
    # Three bytes at a time: numpy copies turned bytes singly, twice as slow.
    upright = np.ascontiguousarray(turn(pixels.view("V3")[:, :, 0]))
    return upright.view(np.uint8).reshape(*upright.shape, 3)


def _jpeg_orientation(data: bytes) -> object:
    if not any(mark in data for mark in _EXIF_MARKS):
        return 1
    with opened(data, MAX_PIXELS) as image:
        return _orientation(image, data)


def _orientation(image: Image.Image, data: bytes) -> object:
    """EXIF orientation; 1, upright, where there is none that can be read."""
    if image.format != "TIFF" and not any(mark in data for mark in _EXIF_MARKS):
        return 1  # spares asking Pillow, which for a PNG decodes the pixels
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return 1
