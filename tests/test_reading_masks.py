"""What docs/reading-masks.md shows, run over an output of two runs."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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
