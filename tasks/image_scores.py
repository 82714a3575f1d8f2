"""The scores of every image of a split, as a Parquet file and as a table of the hardest."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from fcn.evaluate import ImageScores
from tasks import stores
from tasks.report_data import percent

IMAGES_NAME = "images.parquet"

_COLUMNS: dict[str, pa.DataType] = {
    "key": pa.string(),
    "height": pa.int32(),
    "width": pa.int32(),
    "pixels": pa.int64(),
    "pixel_accuracy": pa.float64(),
    "mean_iu": pa.float64(),
    "num_present": pa.int32(),
    "boundary_f1": pa.float64(),
}
"""Columns of the file: `fcn.evaluate.ImageScores` after the key; null where there is no score."""


def write_image_scores(report_url: str, keys: Sequence[str], images: Sequence[ImageScores]) -> str:
    """Write ``images.parquet``, a row per image in the order of the split; returns its URL.

    Raises:
        StoreError: ``report_url`` cannot be written.
    """
    rows = [
        {"key": key, **{name: _known(value) for name, value in asdict(image).items()}}
        for key, image in zip(keys, images, strict=True)
    ]
    buffer = BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, pa.schema(_COLUMNS)), buffer)
    url = stores.join(report_url, IMAGES_NAME)
    stores.write_bytes(url, buffer.getvalue())
    return url


def hardest(
    keys: Sequence[str], images: Sequence[ImageScores], count: int = 20
) -> list[dict[str, str]]:
    """The images with the lowest mean IU, lowest first; those without a score are left out."""
    scored = zip(keys, images, strict=True)
    ranked = sorted(
        ((image.mean_iu, key, image) for key, image in scored if not math.isnan(image.mean_iu)),
        key=lambda entry: entry[:2],
    )
    return [
        {
            "image": key,
            "mean IU": percent(image.mean_iu),
            "classes": str(image.num_present),
            "pixel accuracy": percent(image.pixel_accuracy),
            "boundary F1": percent(image.boundary_f1),
        }
        for _, key, image in ranked[:count]
    ]


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
