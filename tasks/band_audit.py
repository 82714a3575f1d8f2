"""The bands of a sample: read, decoded and compared with their image, see `tasks.audit`.

Kinds of finding, all of them errors:

::

    unreadable_band      no permission, no gray PNG or TIFF, damaged, cut short, too large
    band_size_mismatch   band and image, after its EXIF orientation, differ
    mixed_band           values of another kind than in the samples before, such as 8 and 16 bits
"""

from collections.abc import Callable, Iterable, Mapping
from functools import reduce
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from fcn.bands import Band, Dtype, check_size, decode_band
from fcn.errors import BandError, ImageError
from tasks import stores
from tasks.dataset import Finding
from tasks.split_writer import BandFile
from tasks.stores import StoreError, StoreUnavailable

Report = Callable[[str, str, str], Finding]
"""Makes a finding about a sample, of kind, file and text."""


def examine_bands(
    places: Mapping[str, tuple[str, str]],
    size: tuple[int, ...] | None,
    max_pixels: int,
    finding: Report,
) -> tuple[dict[str, BandFile], list[Finding]]:
    """The bands of one sample, and what is wrong with them.

    Args:
        places: Path and URL of each, by name.
        size: Height and width of the image; None if it cannot be decoded.
        max_pixels: Largest band.
        finding: Makes a finding about the sample.

    Raises:
        StoreUnavailable: the store does not answer.
    """
    found: dict[str, BandFile] = {}
    findings = []
    for name, (path, url) in places.items():
        kind = "unreadable_band"
        try:
            data = stores.read_bytes(url)
            values = decode_band(data, max_pixels=max_pixels)
            kind = "band_size_mismatch"
            check_size(name, values.shape, size or values.shape)
        except StoreUnavailable:
            raise
        except (ImageError, StoreError) as error:
            text = str(error) if isinstance(error, BandError) else f"band {name}: {error}"
            findings.append(finding(kind, path, text))
        else:
            found[name] = BandFile(
                data=data, path=path, dtype=str(values.dtype), moments=_moments(values)
            )
    return found, findings


def mixed_bands(
    bands: Mapping[str, BandFile], first: dict[str, BandFile], finding: Report
) -> list[Finding]:
    """Findings about bands with values of another dtype than the first of their name.

    Args:
        bands: Of one sample.
        first: The first of each name, to which those of a new name are added.
        finding: Makes a finding about the sample.
    """
    return [
        finding(
            "mixed_band",
            band.path,
            f"band {name} holds {band.dtype}, and {first[name].path} {first[name].dtype}; save "
            "all files of a band alike",
        )
        for name, band in bands.items()
        if band.dtype != first.setdefault(name, band).dtype
    ]


def make_band(name: str, dtype: str, moments: Iterable[NDArray[np.float64]]) -> Band:
    """A band with mean and deviation of its known values; 0 and 1 where there are none.

    A band that is the same everywhere has the deviation 1.

    Args:
        name: Its name.
        dtype: Of its values.
        moments: As `BandFile` has them, of splits.
    """
    count, total, squares = reduce(np.add, moments)
    mean = total / count if count else 0.0
    variance = max(0.0, squares / count - mean**2) if count else 0.0
    # Of a constant, rounding leaves something in place of nothing.
    flat = variance <= 1e-12 * mean**2
    return Band(name, cast("Dtype", dtype), float(mean), 1.0 if flat else float(np.sqrt(variance)))


def _moments(values: NDArray[Any]) -> NDArray[np.float64]:
    """Number, sum and sum of squares of the values that are known."""
    some = values[np.isfinite(values)].astype(np.float64)
    return np.array([some.size, some.sum(), np.square(some).sum()])
