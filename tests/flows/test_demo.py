import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fcn.masks import decode_mask
from flows.demo import closing_lines, demo
from tasks.demo import DemoSummary

SMALL = {"num_train": 3, "num_val": 1, "num_unlabelled": 11, "epochs": 1}


@pytest.fixture(scope="module")
def made(prefect_server, tmp_path_factory) -> tuple[Path, DemoSummary]:
    """A small demo: its folder and what it returned."""
    folder = tmp_path_factory.mktemp("demo")
    return folder, demo(str(folder), **SMALL)


def test_the_demo_leaves_masks_report_and_contact_sheet(made):
    folder, summary = made
    assert 0 < summary.mean_iu < 1
    assert (summary.num_images, summary.num_masks) == (11, 10)
    assert Path(summary.report_url).read_text().startswith("<!doctype html>")
    with Image.open(summary.sheet_url) as sheet:
        assert sheet.width > 600
    assert len(list((folder / "prediction" / "masks").rglob("*.png"))) == 10


def test_the_damaged_image_is_named_with_its_reason(made):
    ((key, reason),) = made[1].failures
    assert key == "east/damaged-005.jpg"
    assert "truncated" in reason


def test_masks_lie_on_the_upright_image(made):
    folder, _ = made
    mask = decode_mask((folder / "prediction/masks/west/turned-002.jpg.png").read_bytes())
    with Image.open(folder / "scenes/unlabelled/west/turned-002.jpg") as stored:
        assert mask.shape == (stored.width, stored.height)
    assert np.unique(mask).max() < 8


def test_the_same_call_again_changes_nothing(made):
    folder, first = made
    before = {path: path.stat().st_mtime_ns for path in (folder / "prediction").rglob("*.parquet")}
    again = demo(str(folder), **SMALL)
    after = {path: path.stat().st_mtime_ns for path in (folder / "prediction").rglob("*.parquet")}
    assert (again.mean_iu, after) == (first.mean_iu, before)


def test_the_closing_lines_say_where_to_look(made):
    _, summary = made
    text = "\n".join(closing_lines(summary))
    for part in (summary.sheet_url, summary.report_url, summary.output_url, "10 of 11", "make ui"):
        assert part in text


def test_an_option_that_it_does_not_have_begins_nothing(tmp_path: Path) -> None:
    asked = subprocess.run(
        [sys.executable, "-m", "flows.demo", "--epochs", "3"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert asked.returncode == 2
    assert "unrecognized arguments: --epochs 3" in asked.stderr
    assert list(tmp_path.iterdir()) == []
