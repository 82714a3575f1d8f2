"""What docs/reading-masks.md shows, run over an output of two runs."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest

from tasks import parts, stores
from tasks.shards import write_part_with
from tests.tasks.pictures import Brightness, encoded, pixels, planned, put

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "reading-masks.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder with work/prediction: three images and a bad one, one of them done twice."""
    from tasks.predict_config import PredictConfig

    collection, output = str(tmp_path / "in"), str(tmp_path / "work" / "prediction")
    put(collection, {f"{index}.png": encoded(pixels(rng)) for index in range(3)} | {"x.png": b"x"})
    for run, url in enumerate([collection, f"{collection}/1.png"]):
        manifest = planned(output, list(stores.list_entries(url)), PredictConfig(), run=run)
        write_part_with(Brightness(), manifest, 0, PredictConfig())
        parts.write_index(output, Brightness.classes)
    return tmp_path


def test_the_blocks_run_one_after_the_other_and_see_every_key_once(place: Path) -> None:
    assert len(BLOCKS) == 8
    checks = """
assert newest.count_rows() == 4
counts = dict(duckdb.sql("SELECT status, count(*) FROM newest GROUP BY status").fetchall())
assert counts == {"ok": 3, "failed": 1}, counts
assert sum(count for _, count in pixels) == 3 * 12 * 16, pixels
assert sorted(mask.key for mask in masks) == ["0.png", "1.png", "2.png"]
assert len(frame) == table.height == 4
assert dict(zip(frame["key"], frame["run"].astype(int)))["1.png"] == 1
"""
    run = subprocess.run(
        [sys.executable, "-c", "\n".join([*BLOCKS, checks])],
        cwd=place,
        env=os.environ
        | {
            "HF_HOME": str(place / "huggingface"),
            "HF_HUB_OFFLINE": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_the_block_for_spark_is_python_and_asks_for_what_is_there(place: Path) -> None:
    """No Java here: its folder and columns, and its steps on what pyarrow reads of them."""
    (block,) = re.findall(r"^```text\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    nodes = list(ast.walk(ast.parse(block)))
    texts = {node.value for node in nodes if isinstance(node, ast.Constant)} - {True}
    steps = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    assert steps == {
        *("read", "option", "parquet", "withColumn", "row_number", "over", "partitionBy"),
        *("orderBy", "desc", "where", "drop", "groupBy", "count", "show"),
    }
    assert texts == {"mergeSchema", "work/prediction/parts", "key", "run", "n", "n = 1", "status"}

    rows = ds.dataset(str(place / "work" / "prediction" / "parts"), partitioning="hive")
    frame = rows.to_table(columns=["key", "run", "status"]).to_pandas()
    newest_first = frame.sort_values("run", ascending=False)
    newest = newest_first[newest_first.groupby("key").cumcount() == 0]
    assert len(frame) == 5
    assert newest["status"].value_counts().to_dict() == {"ok": 3, "failed": 1}
    assert newest.set_index("key")["run"].to_dict()["1.png"] == 1
