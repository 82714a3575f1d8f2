"""Markdown that is safe to fill with strangers' words, and pictures inside it.

Class names, keys and error texts come from outside. Everything here returns plain text
for the Markdown that Prefect's pages show.
"""

import base64
import io
import re
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

MAX_WIDTH = 256
"""Width in pixels above which a picture is made smaller."""

_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&-])")


class Markdown(str):
    """Text that is Markdown already: `escape` leaves it as it is."""

    __slots__ = ()


def escape(text: object) -> str:
    """Text as Markdown shows it literally, on one line.

    Names of files that are no valid UTF-8 hold lone surrogates, which no page can carry:
    they become question marks.
    """
    if isinstance(text, Markdown):
        return text
    readable = str(text).encode("utf-8", "replace").decode("utf-8")
    return _SPECIAL.sub(r"\\\1", " ".join(readable.split()))


def table(header: Sequence[object], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; every cell is escaped, numbers stand on the right."""
    rows = [list(row) for row in rows]
    right = [
        bool(rows) and all(_is_number(row[column]) for row in rows) for column in range(len(header))
    ]
    lines = [
        _table_line(escape(cell) for cell in header),
        _table_line("---:" if is_right else "---" for is_right in right),
        *(_table_line(escape(cell) for cell in row) for row in rows),
    ]
    return "\n".join(lines)


def image(picture: np.ndarray | bytes, alt: str, *, max_width: int = MAX_WIDTH) -> Markdown:
    """A picture as Markdown with a ``data:`` URL, which needs no public address.

    Args:
        picture: uint8 ``H x W x 3`` RGB or ``H x W`` gray, or the bytes of an image file.
        alt: What the picture shows, for those who cannot see it.
        max_width: Wider pictures are made smaller.
    """
    return Markdown(f"![{escape(alt)}]({image_url(picture, max_width=max_width)})")


def image_url(
    picture: np.ndarray | bytes, *, max_width: int = MAX_WIDTH, picture_format: str = "JPEG"
) -> str:
    """A picture as a ``data:`` URL, at most ``max_width`` pixels wide.

    Args:
        picture: uint8 ``H x W x 3`` RGB or ``H x W`` gray, or the bytes of an image file.
        max_width: Wider pictures are made smaller.
        picture_format: ``JPEG`` for photographs and overlays, ``PNG`` for plots.
    """
    source = io.BytesIO(picture) if isinstance(picture, bytes) else None
    opened = Image.open(source) if source else Image.fromarray(np.asarray(picture))
    small = opened.convert("RGB")
    if small.width > max_width:
        height = max(1, round(small.height * max_width / small.width))
        small = small.resize((max_width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, picture_format, quality=82)
    return data_url(buffer.getvalue(), f"image/{picture_format.lower()}")


def data_url(data: bytes, media_type: str) -> str:
    """Bytes as a URL that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


def _table_line(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _is_number(cell: object) -> bool:
    return bool(re.fullmatch(r"[-+]?[\d,. ]+( ?%)?|–", str(cell)))
