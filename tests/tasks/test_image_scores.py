"""The file of per-image scores, and the table of the hardest."""

import io
import math

import duckdb
import pandas as pd
import pyarrow.parquet as pq

from fcn.evaluate import ImageScores
from tasks import stores
from tasks.image_scores import hardest, write_image_scores


def image(mean_iu: float) -> ImageScores:
    return ImageScores(
        height=4, width=5, pixels=18, pixel_accuracy=0.5, mean_iu=mean_iu, num_present=2,
        boundary_f1=math.nan,
    )  # fmt: skip


KEYS = ["val/a", "val/ö =1", "val/c", "val/d"]
IMAGES = [image(0.4), image(math.nan), image(0.1), image(0.4)]


def test_the_file_has_a_row_per_image_and_null_where_nothing_is_known(tmp_path):
    url = write_image_scores(str(tmp_path / "report"), KEYS, IMAGES)
    assert url == stores.join(str(tmp_path / "report"), "images.parquet")
    table = pq.read_table(io.BytesIO(stores.read_bytes(url)))
    assert table.column_names == [
        *("key", "height", "width", "pixels", "pixel_accuracy", "mean_iu", "num_present"),
        "boundary_f1",
    ]
    assert table["key"].to_pylist() == KEYS
    assert table["mean_iu"].to_pylist() == [0.4, None, 0.1, 0.4]
    assert table["boundary_f1"].null_count == 4


def test_others_read_the_file(tmp_path):
    url = write_image_scores(str(tmp_path), KEYS, IMAGES)
    assert pd.read_parquet(url)["mean_iu"].mean() == 0.3
    found = duckdb.sql(f"SELECT key FROM '{url}' ORDER BY mean_iu LIMIT 1").fetchall()
    assert found == [("val/c",)]


def test_a_split_without_images_is_a_file_without_rows(tmp_path):
    assert pq.read_table(write_image_scores(str(tmp_path), [], [])).num_rows == 0


def test_the_hardest_stand_first_and_unscored_ones_nowhere():
    rows = hardest(KEYS, IMAGES, count=2)
    assert [row["image"] for row in rows] == ["val/c", "val/a"]
    assert rows[0] == {
        "image": "val/c",
        "mean IU": "10.0 %",
        "classes": "2",
        "pixel accuracy": "50.0 %",
        "boundary F1": "–",
    }
