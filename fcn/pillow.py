"""Pillow on bytes of any origin: one kind of error, no warnings, sizes checked first.

Pillow's warnings about odd metadata and large sizes are silenced in the whole process, at
each use: what matters of them is checked here. Its limit ``Image.MAX_IMAGE_PIXELS`` is left
as it is.
"""

import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

from PIL import Image, ImageFile, UnidentifiedImageError
from PIL.AvifImagePlugin import AvifImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.Jpeg2KImagePlugin import Jpeg2KImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.QoiImagePlugin import QoiImageFile
from PIL.TgaImagePlugin import TgaImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from fcn.errors import (
    CorruptImage,
    EmptyImage,
    FcnError,
    ImageError,
    ImageTooLarge,
    TruncatedImage,
    UnsupportedImage,
)

MAX_PIXELS = 178_956_970
"""Default limit of height x width: the size above which Pillow refuses an image itself."""

JPEG_END = b"\xff\xd9"

# Formats of photographs and scans. Left out: what starts a program (EPS), vectors, stubs.
_FORMATS = tuple(
    str(plugin.format)
    for plugin in (
        JpegImageFile,
        PngImageFile,
        WebPImageFile,
        TiffImageFile,
        GifImageFile,
        BmpImageFile,
        AvifImageFile,
        Jpeg2KImageFile,
        PpmImageFile,
        QoiImageFile,
        TgaImageFile,  # last: it has no signature
    )
)

# What a format starts with, its name, and whether its end mark or length says that bytes miss.
_SIGNATURES: tuple[tuple[bytes, str, Callable[[bytes], bool]], ...] = (
    (b"\xff\xd8\xff", "JPEG", lambda data: data.rfind(JPEG_END) <= data.rfind(b"\xff\xda")),
    (b"\x89PNG\r\n\x1a\n", "PNG", lambda data: b"IEND\xaeB`\x82" not in data),
    (b"GIF8", "GIF", lambda data: not data.rstrip(b"\0").endswith(b";")),
    (b"BM", "BMP", lambda data: int.from_bytes(data[2:6], "little") > len(data)),
    (b"II*\0", "TIFF", lambda data: int.from_bytes(data[4:8], "little") >= len(data)),
    (b"MM\0*", "TIFF", lambda data: int.from_bytes(data[4:8], "big") >= len(data)),
    (b"RIFF", "WebP", lambda data: int.from_bytes(data[4:8], "little") + 8 > len(data)),
    (b"\0\0\0\x1cftypavi", "AVIF", lambda _: False),
    (b"\0\0\0\x20ftypavi", "AVIF", lambda _: False),
    (b"\0\0\0\x0cjP  ", "JPEG 2000", lambda data: not data.endswith(JPEG_END)),
)


@contextmanager
def opened(data: bytes, max_pixels: int) -> Iterator[ImageFile.ImageFile]:
    """Pillow's image of these bytes, not yet decoded, its size checked.

    Raises:
        ImageError: from the header, or in place of whatever a decoder raises in the block.
    """
    if not data:
        raise EmptyImage("zero bytes")
    _silence_pillow()
    try:
        with Image.open(BytesIO(data), formats=_FORMATS) as image:
            check_size(image.height, image.width, max_pixels)
            yield image
    except FcnError:
        raise
    except Exception as error:  # parsers of damaged bytes raise anything
        raise image_error(error, data) from error


def check_size(height: int, width: int, max_pixels: int) -> None:
    """Compare a header's size with the limit.

    Raises:
        ImageTooLarge: the size is above the limit.
    """
    if height * width > max_pixels:
        raise ImageTooLarge(
            f"{height:,} x {width:,} pixels (height x width), above the limit of {max_pixels:,}"
        )


def image_error(error: Exception, data: bytes) -> ImageError:
    """What an error of a decoder says about the bytes it was given."""
    words = str(error).partition("\n")[0].strip()[:200] or type(error).__name__
    if isinstance(error, MemoryError | Image.DecompressionBombError):
        return ImageTooLarge(f"too large to decode: {words}")
    unidentified = isinstance(error, UnidentifiedImageError)
    name, cut = _format_of(data)
    if name is None and unidentified:
        return UnsupportedImage(f"no decoder knows this format; it starts with {data[:8]!r}")
    name = name or "image"
    if (
        cut
        or isinstance(error, EOFError)
        or re.search("truncated|premature end of jpeg", words, re.I)
    ):
        return truncated_image(data)
    words = "header cannot be read" if unidentified else words.removeprefix("Corrupt JPEG data: ")
    return CorruptImage(f"corrupt {name}: {words}")


def truncated_image(data: bytes) -> TruncatedImage:
    """The error for bytes that end too early."""
    name, _ = _format_of(data)
    return TruncatedImage(f"truncated {name or 'image'}: it ends after {len(data):,} bytes")


def format_name(data: bytes) -> str | None:
    """What these bytes start as, such as "JPEG"; None for what has no signature."""
    return next((name for signature, name, _ in _SIGNATURES if data.startswith(signature)), None)


def _format_of(data: bytes) -> tuple[str | None, bool]:
    """Name of the format these bytes start as, and whether they end early by their own account."""
    for signature, name, ends_early in _SIGNATURES:
        if data.startswith(signature):
            return name, ends_early(data)
    return None, False


_FILTER: Any = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


def _silence_pillow() -> None:
    # `warnings.catch_warnings` is not safe in threads; adding a filter is. Looked at each
    # time, because somebody's `catch_warnings` may have dropped it, and added only when it is
    # not in front, because adding makes Python forget which warnings it has shown.
    if not warnings.filters or warnings.filters[0] != _FILTER:
        warnings.filterwarnings("ignore", module=r"PIL\.")
