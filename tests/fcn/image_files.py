"""Image files of every format, made here."""

import struct
import zlib
from io import BytesIO
from typing import Any

import numpy as np
from PIL import ExifTags, Image

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
