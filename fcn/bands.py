"""Bands: the channels of an image beside red, green and blue, such as depth or near infrared.

A band is a gray image of its own, of its image's height and width: a PNG or TIFF of 8 or 16 bits,
or a TIFF of floats. Its values are those of the file, never scaled to 8 bits. It belongs to the
image as people see it: an EXIF orientation of the image has been applied already.

A pixel of a band that is no finite number, such as the NaN of a sensor without an echo, is not
known. Nor is one that has the value which GDAL's tag in a TIFF gives for that. It counts as the
band's mean.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import (
    BITSPERSAMPLE,
    PHOTOMETRIC_INTERPRETATION,
    SAMPLEFORMAT,
    TiffImageFile,
)

from fcn.errors import BandError, ImageError, ImageTooLarge, MissingBand
from fcn.images import check_png
from fcn.names import check_band_name
from fcn.pillow import MAX_PIXELS, format_name, opened

Dtype = Literal["uint8", "uint16", "float32"]

EXTENSIONS = ("png", "tif", "tiff")
"""Of the files that hold bands, in lower case."""

GDAL_NODATA = 42113
"""The TIFF tag, of GDAL's GTiff driver, whose text is the value of pixels that are not known."""

_MAX_EXACT = 2**24  # up to here float32 holds every integer


@dataclass(frozen=True)
class Band:
    """A band that a network sees.

    Attributes:
        name: What the names of its folder and its column end in.
        dtype: Of the values in its files.
        mean: Subtracted from them, in their own units.
        std: Divides them afterwards.

    Raises:
        ValueError: a name that none can have, or a deviation that is not above 0.
    """

    __pydantic_config__: ClassVar = {"extra": "forbid"}  # on model cards (`fcn.checkpoint`)

    name: str
    dtype: Dtype
    mean: float
    std: float

    def __post_init__(self) -> None:
        check_band_name(self.name)
        if not (np.isfinite(self.mean) and np.isfinite(self.std) and self.std > 0):
            raise ValueError(
                f"band {self.name}: mean must be finite and std above 0, "
                f"found {self.mean} and {self.std}"
            )


def decode_band(data: bytes, *, max_pixels: int = MAX_PIXELS) -> NDArray[Any]:
    """The values of a band, ``H x W``, uint8, uint16 or float32.

    Signed integers, as elevations have them, become float32. So do integers of a file that names
    one of their values as unknown (`GDAL_NODATA`): its pixels are NaN. White is 0 or the largest
    value, as the file has it.

    Args:
        data: The bytes of a gray PNG or TIFF; of several frames the first is taken.
        max_pixels: Limit of height x width, checked on the header before decoding.

    Raises:
        BandError: bytes that cannot be decoded, another format, colours, a palette, integers
            that float32 does not hold, or values of less than 8 bits or of 8 with a sign, which
            Pillow would change; a `GDAL_NODATA` that is no number.
        ImageTooLarge: more pixels than ``max_pixels``, than Pillow allows, or than memory holds.
    """
    try:
        return _decode(data, max_pixels)
    except (BandError, ImageTooLarge):
        raise
    except ImageError as error:
        is_unknown = isinstance(error.__cause__, UnidentifiedImageError)
        of_floats = is_unknown and format_name(data) == "TIFF"  # most likely
        hint = "; floats have to have 32 bits, and not 64" if of_floats else ""
        raise BandError(f"{error}{hint}") from error


def _decode(data: bytes, max_pixels: int) -> NDArray[Any]:
    with opened(data, max_pixels) as image:
        if image.format not in {"PNG", "TIFF"}:
            raise BandError(f"{image.format} holds no band; expected a gray PNG or TIFF")
        if image.format == "PNG":
            check_png(data)
        if image.mode not in {"L", "F"} and not image.mode.startswith("I"):
            raise BandError(
                f"the image is {image.mode}; expected a gray one of 8 or 16 bits, or of floats"
            )
        num_bits, is_signed = _stored(image)
        if image.mode == "L" and (num_bits < 8 or is_signed):
            # Pillow would stretch the ones to 0..255, and give 255 for -1.
            raise BandError(
                f"the values have {num_bits} bits{', one of them the sign' if is_signed else ''}; "
                "save them as 8 bits without a sign, as 16 bits or as floats"
            )
        values = np.array(image)
        if image.mode == "I" and image.format == "PNG":
            return values.astype(np.uint16)
        nodata = None
        if isinstance(image, TiffImageFile):
            nodata = _nodata(image)
            if image.mode == "L" and image.tag_v2.get(PHOTOMETRIC_INTERPRETATION) == 0:
                values = ~values  # Pillow turns these around, and none of more bits
    if values.dtype == np.int32 and num_bits == 32 and not is_signed:
        values = values.view(np.uint32)  # as they are in the file: Pillow has no such mode
    values = values.astype(values.dtype.newbyteorder("="), copy=False)
    unknown = None if nodata is None else _equals(values, nodata)
    if values.dtype in (np.uint8, np.uint16) and unknown is None:
        return values
    if values.dtype.kind in "iu":
        there = values if unknown is None else values[~unknown]
        if there.size and max(-int(there.min()), int(there.max())) > _MAX_EXACT:
            raise BandError(
                f"values from {there.min():,} to {there.max():,}; save integers of more than 24 "
                "bits as floats"
            )
    values = values.astype(np.float32, copy=False)
    if unknown is not None:
        values[unknown] = np.nan
    return values


def _nodata(image: TiffImageFile) -> float | None:
    """The value of pixels that are not known, if the file names one."""
    text = image.tag_v2.get(GDAL_NODATA)
    try:
        return None if text is None else float(str(text).strip(" \0"))
    except ValueError as error:
        raise BandError(
            f"GDAL_NODATA, the value of unknown pixels, is {str(text)[:40]!r}; expected a number"
        ) from error


def _equals(values: NDArray[Any], nodata: float) -> NDArray[np.bool_] | None:
    """Where pixels have a value; None if their type does not hold it."""
    if values.dtype.kind in "iu":
        limits = np.iinfo(values.dtype)
        if not (nodata.is_integer() and limits.min <= nodata <= limits.max):
            return None
    with np.errstate(over="ignore"):  # GDAL's default for floats of 64 bits, in a file of 32
        equal: NDArray[np.bool_] = values == np.array(nodata).astype(values.dtype)
    return equal


def _stored(image: ImageFile) -> tuple[int, bool]:
    """Bits of a value in the file of a gray image, and whether it is an integer with a sign."""
    if isinstance(image, TiffImageFile):
        bits, kinds = (image.tag_v2.get(tag, (1,)) for tag in (BITSPERSAMPLE, SAMPLEFORMAT))
        return int(bits[0]), kinds[0] == 2  # two's complement
    depth = str(image.tile[0].args).partition(";")[2]  # such as L;4, or I;16B
    return int(depth.rstrip("B") or 8), False


def stack(
    image: NDArray[np.uint8], values: Mapping[str, NDArray[Any]], bands: Sequence[Band]
) -> NDArray[Any]:
    """An image with its bands behind the colours, ``H x W x (3 + B)``.

    What is not known in a band is its mean there.

    Args:
        image: RGB, ``H x W x 3``.
        values: Of each band, by name, ``H x W``; others are passed over.
        bands: What is asked for, in order. Without any, the image is returned as it is.

    Returns:
        uint8 if all bands are, else float32.

    Raises:
        MissingBand: a band that is not among the values.
        BandError: a band of another size than its image, or of another dtype than it should be.
    """
    if not bands:
        return image
    whole = np.empty((*image.shape[:2], 3 + len(bands)), stacked_dtype(bands))
    whole[:, :, :3] = image
    for place, band in enumerate(bands, start=3):
        if band.name not in values:
            raise MissingBand(f"the image has no band {band.name}")
        found = values[band.name]
        check_size(band.name, found.shape, image.shape[:2])
        if found.dtype != band.dtype:
            raise BandError(f"band {band.name} holds {found.dtype}, expected {band.dtype}")
        whole[:, :, place] = _known(found, band.mean)
    return whole


def decode_stacked(
    image: NDArray[np.uint8],
    files: Mapping[str, bytes | None],
    bands: Sequence[Band],
    decode: Callable[..., NDArray[Any]] = decode_band,
) -> NDArray[Any]:
    """`stack` of bands that are still encoded; None stands for one that is not there.

    Args:
        image: RGB, ``H x W x 3``.
        files: Of each band, by name.
        bands: What is asked for, in order.
        decode: `decode_band`, or what does the same elsewhere.

    Raises:
        MissingBand: a band that is not there.
        BandError: a band that cannot be decoded, or does not fit.
    """
    values = {}
    height, width = image.shape[:2]
    for band in bands:
        data = files.get(band.name)
        if data is None:
            continue
        try:
            values[band.name] = decode(data, max_pixels=height * width)
        except ImageTooLarge as error:
            raise BandError(
                f"band {band.name} is larger than its image, {height} x {width}: {error}"
            ) from error
        except ImageError as error:
            raise BandError(f"band {band.name}: {error}") from error
    return stack(image, values, bands)


def stacked_dtype(bands: Sequence[Band]) -> type[np.uint8] | type[np.float32]:
    """What an image with these bands is held in."""
    return np.uint8 if all(band.dtype == "uint8" for band in bands) else np.float32


def check_size(name: str, found: tuple[int, ...], image: tuple[int, ...]) -> None:
    """Compare height and width of a band with those of its image.

    Raises:
        BandError: they differ.
    """
    if tuple(found) != tuple(image):
        raise BandError(
            f"band {name} is {found[0]} x {found[1]} (height x width), its image "
            f"{image[0]} x {image[1]}"
        )


def known(pixels: NDArray[Any], bands: Sequence[Band]) -> NDArray[Any]:
    """Pixels ``H x W x (3 + B)`` with a band's mean where its value is no finite number.

    A copy, if there is such a pixel.
    """
    if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
        return pixels
    means = np.array([0.0, 0.0, 0.0, *(band.mean for band in bands)], pixels.dtype)
    return np.where(np.isfinite(pixels), pixels, means)


def _known(values: NDArray[Any], mean: float) -> NDArray[Any]:
    """A band with its mean where it is no finite number."""
    return np.where(np.isfinite(values), values, mean) if values.dtype.kind == "f" else values
