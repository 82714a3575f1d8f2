"""The size of a plain JPEG, read without a decoder: most headers need no other process.

Nothing but lengths and two numbers is looked at, in Python, so there is nothing that strangers'
bytes could break. What is not as plain as most JPEGs are (EXIF, colour profiles, damage, other
formats) is left to `fcn.images.image_size`.
"""

import struct
from collections.abc import Callable, Iterator, Mapping

_JFIF, _DQT, _DHT, _DRI, _COM, _SOS = 0xE0, 0xDB, 0xC4, 0xDD, 0xFE, 0xDA
_FRAMES = (0xC0, 0xC1, 0xC2)  # baseline, extended, progressive

MAX_SEGMENTS = 64
"""Before the pixels; files have about ten."""

_MAX_PIXELS = 80_000_000  # above, Pillow has a word


def plain_jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Height and width of a gray or three-coloured JPEG without EXIF; None for all else."""
    if not data.startswith(b"\xff\xd8\xff"):
        return None
    frames = []
    for kind, body in _segments(data):
        if not _PLAIN[kind](body):
            return None
        if kind in _FRAMES:
            frames.append(struct.unpack_from(">HH", body, 1))
        if kind == _SOS and len(frames) == 1:
            ((height, width),) = frames
            return (height, width) if 0 < height * width <= _MAX_PIXELS else None
    return None


def _segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and content of each segment of a plain JPEG, up to the first that is not plain."""
    place = 2
    for _ in range(MAX_SEGMENTS):
        if place + 4 > len(data):
            return
        mark, kind, length = struct.unpack_from(">BBH", data, place)
        start, place = place + 4, place + 2 + length
        if mark != 0xFF or kind not in _PLAIN or length < 2 or place > len(data):
            return
        yield kind, data[start:place]


def _is_jfif(body: bytes) -> bool:
    return body.startswith(b"JFIF\0") and len(body) >= 14


def _is_tables(body: bytes) -> bool:
    """Whole quantisation tables of 8 bits."""
    return len(body) % 65 == 0 and not any(body[start] >> 4 for start in range(0, len(body), 65))


def _is_frame(body: bytes) -> bool:
    """8 bits, and one or three colours."""
    return len(body) in (9, 15) and body[0] == 8 and body[5] == (len(body) - 6) // 3


def _any(_: bytes) -> bool:
    return True


_PLAIN: Mapping[int, Callable[[bytes], bool]] = {
    _JFIF: _is_jfif,
    _DQT: _is_tables,
    **dict.fromkeys(_FRAMES, _is_frame),
    **dict.fromkeys((_DHT, _DRI, _COM, _SOS), _any),
}
