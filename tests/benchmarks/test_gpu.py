"""The scripts for a bare GPU machine, tried on a CPU without what such a machine lacks."""

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

ABSENT = ("pydantic", "prefect", "safetensors", "simplejpeg", "triton", "obstore")

RUN = f"""
import runpy, sys
for name in {ABSENT}:
    sys.modules[name] = None
sys.argv = sys.argv[1:]
sys.path[0] = "elsewhere"
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def tried(script: str, *arguments: str) -> None:
    """Run a script for a moment, from a checkout that nothing installed."""
    outcome = subprocess.run(
        [sys.executable, "-c", RUN, ROOT / "benchmarks" / script, *arguments],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert outcome.returncode == 0, outcome.stderr


def test_prediction_is_measured(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    arguments = "--device cpu --backbone squeezenet1_1 --height 40 --width 56 --images 6"
    tried("gpu_prediction.py", *arguments.split(), "--batch-sizes", "2", "--out", str(page))
    text = page.read_text(encoding="utf-8")
    for title in ("Bare network", "Upsampling and labels alone", "End to end"):
        assert f"\n## {title}" in text
    assert "JPEGs decoded by Pillow" in text.replace("\n", " ")


def png(pixels: np.ndarray) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"bytes": file.getvalue()}


@pytest.mark.skipif(
    not (ROOT / "benchmarks" / "gpu_camvid.py").exists(), reason="there is no gpu_camvid.py"
)
def test_a_training_is_measured(tmp_path: Path, rng: np.random.Generator) -> None:
    dataset, page = tmp_path / "dataset", tmp_path / "page.md"
    (dataset / "data").mkdir(parents=True)
    for split in ("train", "val"):
        rows = [
            {
                "image": png(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)),
                "label": png(rng.integers(0, 2, (40, 48), dtype=np.uint8)),
            }
            for _ in range(4)
        ]
        pq.write_table(pa.Table.from_pylist(rows), dataset / f"data/{split}-00000-of-00001.parquet")
    classes = [{"name": name} for name in ("road", "tree")]
    (dataset / "dataset.json").write_text(json.dumps({"classes": classes, "ignore_index": 255}))
    arguments = "--device cpu --backbone squeezenet1_1 --epochs 1 --batch-size 2"
    tried("gpu_camvid.py", str(dataset), *arguments.split(), "--out", str(page))
    assert "| mean IU on val, % |" in page.read_text(encoding="utf-8")
