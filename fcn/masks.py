"""Label maps to bytes and back: palette PNG, 16-bit gray PNG, run lengths.

A mask's PNG holds class ids as palette indices, so that any viewer shows it in colour and any
reader gets the ids back; label maps of uint16 become 16-bit gray PNGs. The PNG is written
directly, every row filtered against the row above and packed with zlib's run-length strategy:
for label maps that is faster than Pillow and as small.

Run lengths are the compact form (little-endian)::

    4s  magic b"FCNR"
    B   bytes per value: 1 (uint8) or 2 (uint16)
    I   height
    I   width
    I   number of runs, in row-major order over the whole map
    …   zlib: the value of each run, then the length of each run as LEB128
"""

import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fcn.classes import Colour, voc_palette
from fcn.errors import CorruptImage, LabelError, TruncatedImage
from fcn.images import MAX_PIXELS, check_png
from fcn.pillow import check_size, opened

MaskFormat = Literal["png", "rle"]

_VOC = voc_palette(256)
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PALETTE, _GRAY = 3, 0  # PNG colour types
_UP = 2  # PNG filter: difference to the row above
_RLE_MAGIC = b"FCNR"
_RLE_HEADER = struct.Struct("<4sBIII")
_STRIP_PIXELS = 1_000_000
_PIECE_BYTES = 1 << 16  # of run lengths, whose numbers take 40 times as much while they are read
_MAX_VARINT = 5  # bytes: runs are below 2**35
_LOSSLESS = frozenset({"PNG", "TIFF", "BMP", "GIF", "PPM"})


def encode_mask(
    label: NDArray[Any],
    palette: Sequence[Colour] | None = None,
    *,
    mask_format: MaskFormat = "png",
) -> bytes:
    """Bytes of a label map; `decode_mask` is the inverse.

    Args:
        label: Class ids H x W, uint8 or uint16.
        palette: Colours of the classes, by id; ids beyond it have the PASCAL VOC colours, 255
            among them. Run lengths and uint16 carry no colours.
        mask_format: "png", or "rle" for run lengths.

    Raises:
        LabelError: a label map of another type or shape, or without pixels.
        ValueError: more than 256 colours, or an unknown format.
    """
    if label.ndim != 2 or not label.size:
        raise LabelError(f"a label map is H x W, at least 1 x 1; found shape {label.shape}")
    if label.dtype not in (np.uint8, np.uint16):
        raise LabelError(f"a label map holds uint8 or uint16; found {label.dtype}")
    if mask_format == "rle":
        return _encode_runs(label)
    if mask_format != "png":
        raise ValueError(f"mask_format must be 'png' or 'rle', found {mask_format!r}")
    return _encode_png(label, palette or ())


def decode_mask(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """Class ids H x W of a mask, uint8 or uint16.

    Reads what `encode_mask` writes and other masks in lossless formats: the indices of palette
    images, the values of gray ones; 1-bit gray gives 0 and 1.

    Raises:
        LabelError: an image that holds no class ids, such as RGB, or lossy formats.
        ImageError: bytes that cannot be decoded, as in `decode_image`.
    """
    if data.startswith(_RLE_MAGIC):
        return _decode_runs(data, max_pixels)
    with opened(data, max_pixels) as image:
        if image.format not in _LOSSLESS:
            raise LabelError(f"{image.format} does not keep class ids; save masks as PNG")
        if image.format == "PNG":
            check_png(data)
        if image.mode not in {"P", "L", "1"} and not image.mode.startswith("I"):
            raise LabelError(
                f"mask is {image.mode}; expected a palette or gray image whose values are class "
                "ids (colours need a colour table)"
            )
        return _ids(np.array(image))


def count_labels(label: NDArray[Any], num_classes: int) -> list[int]:
    """Pixels of each class id of a label map H x W; ids beyond the classes add to the list."""
    if label.dtype == np.uint8 and num_classes <= 256:  # Pillow counts twice as fast as numpy
        of_byte = np.sum([Image.fromarray(strip).histogram() for strip in _strips(label)], axis=0)
        num_found = 1 + int(np.flatnonzero(of_byte)[-1])
        return [int(count) for count in of_byte[: max(num_classes, num_found)]]
    strips = [np.bincount(strip.ravel(), minlength=num_classes) for strip in _strips(label)]
    counts = np.zeros(max(map(len, strips)), np.int64)
    for strip in strips:
        counts[: len(strip)] += strip
    return [int(count) for count in counts]


def _ids(values: NDArray[Any]) -> NDArray[Any]:
    if values.dtype == np.bool_:
        return values.astype(np.uint8)
    if values.dtype != np.uint8:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise LabelError(f"mask holds values from {low} to {high}; class ids are 0..65535")
        return values.astype(np.uint16)
    return values


def _encode_png(label: NDArray[Any], palette: Sequence[Colour]) -> bytes:
    height, width = label.shape
    deep = label.dtype == np.uint16
    header = struct.pack(
        ">IIBBBBB", width, height, 16 if deep else 8, _GRAY if deep else _PALETTE, 0, 0, 0
    )
    chunks = [_chunk(b"IHDR", header)]
    if not deep:
        chunks.append(_chunk(b"PLTE", _palette_bytes(palette, int(label.max()) + 1)))
    chunks += [_chunk(b"IDAT", _filtered(label)), _chunk(b"IEND", b"")]
    return _PNG_SIGNATURE + b"".join(chunks)


def _palette_bytes(palette: Sequence[Colour], num_needed: int) -> bytes:
    if len(palette) > 256:
        raise ValueError(f"a palette PNG has at most 256 colours, found {len(palette)}")
    colours = (*palette, *_VOC[len(palette) :])[: max(len(palette), num_needed)]
    return bytes(value for colour in colours for value in colour)


def _filtered(label: NDArray[Any]) -> bytes:
    """Rows of bytes, each as the difference to the row above, packed a strip at a time."""
    packer = zlib.compressobj(6, zlib.DEFLATED, 15, 9, zlib.Z_RLE)
    packed = []
    above = np.zeros((1, label.shape[1] * label.itemsize), np.uint8)
    for strip in _strips(label):
        rows = strip.astype(">u2", order="C").view(np.uint8) if label.itemsize == 2 else strip
        filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
        filtered[:, 0] = _UP
        np.subtract(rows[:1], above, out=filtered[:1, 1:])  # wraps, as PNG wants it
        np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
        packed.append(packer.compress(filtered.data))
        above = rows[-1:]
    return b"".join([*packed, packer.flush()])


def _strips(label: NDArray[Any]) -> Iterator[NDArray[Any]]:
    """Rows of a label map, about `_STRIP_PIXELS` at a time: copies of them stay small."""
    step = max(1, _STRIP_PIXELS // label.shape[1])
    for top in range(0, len(label), step):
        yield label[top : top + step]


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _encode_runs(label: NDArray[Any]) -> bytes:
    values = label.ravel()
    starts = np.flatnonzero(values[1:] != values[:-1]) + 1
    starts = np.concatenate(([0], starts))
    runs = np.diff(starts, append=values.size)
    header = _RLE_HEADER.pack(_RLE_MAGIC, label.itemsize, *label.shape, len(starts))
    ids = values[starts].astype(label.dtype.newbyteorder("<"))
    packer = zlib.compressobj()
    packed = [packer.compress(ids.data)]
    packed += [
        packer.compress(_varints(runs[start : start + _STRIP_PIXELS]))
        for start in range(0, len(runs), _STRIP_PIXELS)
    ]
    return b"".join([header, *packed, packer.flush()])


def _decode_runs(data: bytes, max_pixels: int) -> NDArray[Any]:
    if len(data) < _RLE_HEADER.size:
        raise TruncatedImage(f"truncated run lengths: they end after {len(data)} bytes")
    _, itemsize, height, width, num_runs = _RLE_HEADER.unpack_from(data)
    check_size(height, width, max_pixels)
    if itemsize not in {1, 2} or not 1 <= num_runs <= height * width:
        raise CorruptImage(
            f"corrupt run lengths: {num_runs:,} runs of {itemsize}-byte values "
            f"for {height:,} x {width:,} pixels"
        )

    def wrong(found: str) -> CorruptImage:
        return CorruptImage(
            f"corrupt run lengths: {found}; expected {num_runs:,} runs over {label_size:,} pixels"
        )

    label_size = height * width
    packed = memoryview(data)[_RLE_HEADER.size :]
    pieces = _unpacked(packed, num_runs * (itemsize + _MAX_VARINT))
    ids = bytearray()
    for piece in pieces:
        ids += piece
        if len(ids) >= num_runs * itemsize:
            break
    else:
        raise wrong(f"values of {len(ids) // itemsize:,} runs")
    rest = bytes(ids[num_runs * itemsize :])
    values = np.frombuffer(ids, f"<u{itemsize}", num_runs)
    label = np.empty(label_size, np.uint8 if itemsize == 1 else np.uint16)
    first = start = 0  # run, pixel
    for runs in _from_varints(chain([rest], pieces)):
        after, end = first + len(runs), start + int(runs.sum())
        if runs.min() < 1 or after > num_runs or end > label.size:
            raise wrong(f"{after:,} runs over {end:,} pixels, the shortest of {runs.min()}")
        label[start:end] = np.repeat(values[first:after], runs)
        first, start = after, end
    if (first, start) != (num_runs, label.size):
        raise wrong(f"{first:,} runs over {start:,} pixels")
    return label.reshape(height, width)


def _unpacked(packed: memoryview, limit: int) -> Iterator[bytes]:
    """The body in pieces, at most `limit` bytes together, whatever the stream would grow to."""
    unpacker = zlib.decompressobj()
    too_many = CorruptImage(f"corrupt run lengths: more than the {limit:,} bytes they may hold")
    for start in range(0, len(packed), _PIECE_BYTES):
        left: bytes | memoryview = packed[start : start + _PIECE_BYTES]
        while left:
            if unpacker.eof:
                raise too_many
            try:
                body = unpacker.decompress(left, _PIECE_BYTES)
            except zlib.error as error:
                raise CorruptImage(f"corrupt run lengths: {error}") from error
            left, limit = unpacker.unconsumed_tail or unpacker.unused_data, limit - len(body)
            if limit < 0:
                raise too_many
            yield body
    if not unpacker.eof:
        raise TruncatedImage(f"truncated run lengths: they end after {len(packed):,} packed bytes")


def _varints(numbers: NDArray[np.int64]) -> bytes:
    """LEB128: 7 bits per byte, lowest first, the high bit set on all but the last."""
    septets = (numbers[:, None] >> np.arange(0, 7 * _MAX_VARINT, 7)).astype(np.int64)
    used = np.maximum(septets > 0, np.arange(_MAX_VARINT) == 0)
    more = np.zeros_like(used)
    more[:, :-1] = used[:, 1:]
    septets = (septets & 127) | more * np.int64(128)
    return bytes(septets[used].astype(np.uint8))


def _from_varints(pieces: Iterable[bytes]) -> Iterator[NDArray[np.int64]]:
    """Numbers of the LEB128 bytes of each piece; a varint may go on in the next.

    Raises:
        CorruptImage: the bytes are no whole varints of at most 5 bytes.
    """
    rest = b""
    for piece in pieces:
        data = np.frombuffer(rest + piece, np.uint8)
        ends = np.flatnonzero(data < 128)
        starts = np.concatenate(([0], ends + 1))
        rest = data[starts[-1] :].tobytes()
        lengths = np.diff(starts)
        if len(rest) >= _MAX_VARINT or lengths.max(initial=0) > _MAX_VARINT:
            raise CorruptImage("corrupt run lengths: a number of more than 5 bytes")
        if len(ends):
            whole = data[: starts[-1]]
            places = np.arange(len(whole)) - np.repeat(starts[:-1], lengths)
            septets = (whole.astype(np.int64) & 127) << (7 * places)
            yield np.add.reduceat(septets, starts[:-1])
    if rest:
        raise CorruptImage("corrupt run lengths: the last number has no end")
