"""The scores of every image of a split, as a Parquet file and as a table of the hardest."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO

import pyarrow as pa
import pyarrow.parquet as pq

from fcn.evaluate import ImageScores
from tasks import stores
from tasks.report_data import percent

IMAGES_NAME = "images.parquet"

_COLUMNS: dict[str, pa.DataType] = {
    "height": pa.int32(),
    "width": pa.int32(),
    "pixels": pa.int64(),
    "pixel_accuracy": pa.float64(),
    "mean_iu": pa.float64(),
    "num_present": pa.int32(),
    "boundary_f1": pa.float64(),
}
"""Columns of the file after the key: `fcn.evaluate.ImageScores`; null where there is no score."""


def write_image_scores(
    report_url: str,
    keys: Sequence[str],
    images: Sequence[ImageScores],
    further: Mapping[str, Sequence[ImageScores]] | None = None,
) -> str:
    """Write ``images.parquet``, a row per image in the order of the split; returns its URL.

    Args:
        report_url: Where to.
        keys: Of the images.
        images: Their scores.
        further: Their scores in further heads, by name: columns such as ``mean_iu_NAME``.

    Raises:
        StoreError: ``report_url`` cannot be written.
    """
    table = _table(images).add_column(0, "key", pa.array(list(keys), pa.string()))
    for head, of_head in (further or {}).items():
        scores = _table(of_head).drop_columns(["height", "width"])
        for name, column in zip(scores.column_names, scores.columns, strict=True):
            table = table.append_column(f"{name}_{head}", column)
    buffer = BytesIO()
    pq.write_table(table, buffer)
    url = stores.join(report_url, IMAGES_NAME)
    stores.write_bytes(url, buffer.getvalue())
    return url


def _table(images: Sequence[ImageScores]) -> pa.Table:
    rows = [{name: _known(value) for name, value in asdict(image).items()} for image in images]
    return pa.Table.from_pylist(rows, pa.schema(_COLUMNS))


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
