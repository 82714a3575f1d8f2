"""Pictures of label maps: colours, overlays, errors, and sheets of panels for reports."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from fcn.classes import IGNORE_INDEX, Classes, Colour, voc_palette
from fcn.errors import LabelError
from fcn.metrics import check_classes

Pixels = NDArray[np.uint8]

IGNORED: Colour = voc_palette(256)[255]
"""Colour of pixels without a class, PASCAL VOC's "void"."""

_RIGHT, _WRONG, _UNCOUNTED = (200, 200, 200), (215, 25, 28), (0, 0, 0)

_WHITE, _INK, _FRAME = (255, 255, 255), (32, 32, 32), (208, 208, 208)
_MARGIN, _GAP, _LINE = 20, 14, 20  # pixels
_TEXT, _TITLE = 14, 20  # font sizes
_WIDEST = 2.5  # a panel's width over its height, above which it is scaled to fit


def colourise(label: NDArray[Any], classes: Classes) -> Pixels:
    """A label map in the colours of its classes, H x W x 3 RGB; ignored pixels are pale.

    Raises:
        LabelError: a label that is neither a class nor ``classes.ignore_index``.
    """
    ignored = label == classes.ignore_index
    check_classes("label", label[~ignored], len(classes))
    colours = np.array([*classes.palette, IGNORED], np.uint8)
    return colours.take(np.where(ignored, len(classes), label), axis=0)


def overlay(image: Pixels, label: NDArray[Any], classes: Classes, *, alpha: float = 0.5) -> Pixels:
    """An image tinted with its classes; ignored pixels stay as they are.

    Args:
        image: RGB, H x W x 3.
        label: Class ids, H x W.
        classes: Gives the colours.
        alpha: Weight of the colours, from 0 (the image) to 1 (`colourise`).

    Raises:
        LabelError: a label of another size than the image, or with values that are no class.
        ValueError: `alpha` outside 0..1.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be within 0..1, found {alpha}")
    if image.shape != (*label.shape, 3):
        raise LabelError(f"label has shape {label.shape} but its image {image.shape}")
    mixed = image * np.float32(1 - alpha) + colourise(label, classes) * np.float32(alpha)
    ignored = (label == classes.ignore_index)[:, :, None]
    return np.where(ignored, image, np.rint(mixed).astype(np.uint8))


def error_map(
    label: NDArray[Any], prediction: NDArray[Any], ignore_index: int = IGNORE_INDEX
) -> Pixels:
    """Where a prediction is wrong, H x W x 3 RGB: wrong red, right gray, ignored black.

    Raises:
        LabelError: label and prediction of different shapes.
    """
    if label.shape != prediction.shape:
        raise LabelError(f"label has shape {label.shape} but prediction {prediction.shape}")
    verdict = np.where(label == ignore_index, 2, label != prediction)
    return np.array([_RIGHT, _WRONG, _UNCOUNTED], np.uint8).take(verdict, axis=0)


def png_bytes(array: Pixels) -> bytes:
    """A PNG of RGB pixels H x W x 3 or gray ones H x W; for label maps see `encode_mask`."""
    return _saved(array, "PNG")


def jpeg_bytes(array: Pixels, quality: int = 85) -> bytes:
    """A JPEG of RGB pixels H x W x 3 or gray ones H x W."""
    return _saved(array, "JPEG", quality=quality)


def _saved(array: Pixels, image_format: str, **settings: int) -> bytes:
    file = BytesIO()
    Image.fromarray(array).save(file, image_format, **settings)
    return file.getvalue()


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """One picture of a contact sheet.

    Attributes:
        image: RGB pixels H x W x 3 or gray ones H x W.
        caption: Stands below the picture; may have several lines.
    """

    image: Pixels
    caption: str = ""


def contact_sheet(
    rows: Sequence[Sequence[Panel]],
    *,
    classes: Classes | None = None,
    title: str = "",
    panel_height: int = 240,
) -> Pixels:
    """Panels in rows on white, H x W x 3 RGB, for people to look at.

    Args:
        rows: Panels from top to bottom, left to right; rows may differ in length.
        classes: Adds a legend with the colour of each class.
        title: Stands above the panels.
        panel_height: Height of every picture in pixels; very wide ones are lower.

    Raises:
        RuntimeError: Pillow was built without FreeType.
        ValueError: no panel at all.
    """
    pictures = [[_fitted(panel.image, panel_height) for panel in row] for row in rows]
    num_columns = max((len(row) for row in pictures), default=0)
    if not num_columns:
        raise ValueError("a contact sheet needs at least one panel")
    widths = [
        max(row[column].width for row in pictures if column < len(row))
        for column in range(num_columns)
    ]
    width = 2 * _MARGIN + sum(widths) + _GAP * (num_columns - 1)
    strips = [_title_strip(title, width)] if title else [_strip(width, _MARGIN - _GAP)]
    for row, row_pictures in zip(rows, pictures, strict=True):
        captions = [panel.caption for panel in row]
        strips.append(_row_strip(row_pictures, captions, widths, width))
    strips.append(_legend_strip(classes, width) if classes else _strip(width, _MARGIN - _GAP))
    return np.concatenate([np.asarray(strip) for strip in strips])


def _fitted(pixels: Pixels, height: int) -> Image.Image:
    """The picture in this height, or lower if it would be too wide."""
    image = Image.fromarray(pixels).convert("RGB")
    scale = min(height / image.height, _WIDEST * height / image.width)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.BICUBIC)


def _strip(width: int, height: int) -> Image.Image:
    return Image.new("RGB", (width, height), _WHITE)


def _title_strip(title: str, width: int) -> Image.Image:
    strip = _strip(width, _MARGIN + 2 * _LINE)
    font = _font(_TITLE)
    text = _shortened(title, font, width - 2 * _MARGIN)
    ImageDraw.Draw(strip).text((_MARGIN, _MARGIN), text, _INK, font)
    return strip


def _row_strip(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    widths: Sequence[int],
    width: int,
) -> Image.Image:
    height = max((picture.height for picture in pictures), default=0)
    num_lines = max((len(caption.splitlines()) for caption in captions), default=0)
    strip = _strip(width, _GAP + height + num_lines * _LINE + _LINE // 2)
    draw, left = ImageDraw.Draw(strip), _MARGIN
    for picture, caption, column_width in zip(pictures, captions, widths, strict=False):
        top = _GAP + height - picture.height  # pictures stand on their captions
        strip.paste(picture, (left, top))
        draw.rectangle(
            (left - 1, top - 1, left + picture.width, top + picture.height), outline=_FRAME
        )
        for number, line in enumerate(caption.splitlines()):
            text = _shortened(line, _font(_TEXT), column_width)
            draw.text((left, _GAP + height + 4 + number * _LINE), text, _INK, _font(_TEXT))
        left += column_width + _GAP
    return strip


def _legend_strip(classes: Classes, width: int) -> Image.Image:
    entries = [*zip(classes.names, classes.palette, strict=True), ("ignored", IGNORED)]
    places = list(_legend_places([name for name, _ in entries], width))
    strip = _strip(width, places[-1][1] + _LINE + _MARGIN)
    draw = ImageDraw.Draw(strip)
    for (name, colour), (left, top) in zip(entries, places, strict=True):
        draw.rectangle((left, top + 1, left + 16, top + 17), fill=colour, outline=_FRAME)
        draw.text((left + 24, top + 9), name, _INK, _font(_TEXT), anchor="lm")
    return strip


def _legend_places(names: Sequence[str], width: int) -> Iterator[tuple[int, int]]:
    """Left and top of each entry, side by side as far as the sheet is wide."""
    left, top = _MARGIN, _GAP
    for name in names:
        entry_width = 24 + round(_font(_TEXT).getlength(name)) + 2 * _GAP
        if left > _MARGIN and left + entry_width > width:
            left, top = _MARGIN, top + _LINE + 4
        yield left, top
        left += entry_width


def _shortened(text: str, font: ImageFont.FreeTypeFont, width: int) -> str:
    """The text, without its middle if it is too wide: names differ at their ends."""
    kept = len(text)
    shown = text
    while font.getlength(shown) > width and kept > 2:
        kept -= 1
        shown = f"{text[: kept // 2]}…{text[len(text) - (kept - kept // 2) :]}"
    return shown


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    if isinstance(font, ImageFont.FreeTypeFont):
        return font
    raise RuntimeError(
        "this Pillow was built without FreeType, which captions need; install one with it, such "
        "as the wheels of the package index"
    )
