"""The flow evaluate on a real server: figures, files, and the ways to look."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fcn
from fcn.averaging import AveragedPredictor
from fcn.backends import find_backend
from fcn.evaluate import score_samples, score_split
from fcn.predict import Predictor
from flows.evaluate import EvaluateConfig, evaluate
from tasks.dataset import open_split, read_info
from tests.fcn.models import varied_model
from tests.fcn.scenes import CLASSES
from tests.tasks.labelled import make_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset and a model of its classes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_dataset(str(tmp_path / "set"), num_val=5)
    random = varied_model("squeezenet1_1", 2)
    fcn.save(fcn.Model(random.net, CLASSES, random.input), tmp_path / "model.safetensors")
    return tmp_path


def test_the_summary_has_figures_bounds_and_files(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    summary = evaluate(str(place / "set"), str(place / "model.safetensors"), str(place / "report"))
    predictor = Predictor(fcn.load(place / "model.safetensors"))
    samples = open_split(read_info(str(place / "set")), "val")
    expected = score_split(score_samples(predictor, samples), CLASSES)
    assert summary.mean_iu == expected.scores.mean_iu
    assert summary.mean_iu_low == expected.intervals.mean_iu.low < summary.mean_iu
    assert summary.mean_iu_high == expected.intervals.mean_iu.high > summary.mean_iu
    assert summary.pixel_accuracy_low < summary.pixel_accuracy < summary.pixel_accuracy_high
    assert summary.boundary_f1 == expected.mean_boundary_f1
    rows = pq.read_table(summary.images_url).to_pylist()
    assert [row["key"] for row in rows] == samples.keys
    assert [row["boundary_f1"] for row in rows] == [i.boundary_f1 for i in expected.images]
    low, high = (f"{100 * bound:.1f}" for bound in (summary.mean_iu_low, summary.mean_iu_high))
    assert f"({low}–{high} %) over 2 of 2 classes, pixel accuracy" in caplog.text
    assert f"{low}–{high} %" in Path(summary.report_url).read_text()


def test_several_looks_at_each_image_are_a_setting(place: Path) -> None:
    config = EvaluateConfig(flip=True, scales=(0.75, 1.0), num_examples=1)
    url = str(place / "model.safetensors")
    summary = evaluate(str(place / "set"), url, str(place / "report"), config=config)
    predictor = AveragedPredictor(fcn.load(url), flip=True, scales=(0.75, 1.0))
    samples = open_split(read_info(str(place / "set")), "val")
    matrices = [scored.confusion for scored in score_samples(predictor, samples)]
    assert summary.pixel_accuracy == fcn.Scores(np.sum(matrices, axis=0)).pixel_accuracy
    once = evaluate(str(place / "set"), url, str(place / "once"))
    assert once.pixel_accuracy != summary.pixel_accuracy
    page = Path(summary.report_url).read_text()
    assert "<dd>0.75, 1</dd>" in page
    assert "<dt>mirror image too</dt><dd>yes</dd>" in page
    assert "<dt>backend</dt><dd>torch</dd>" in page
    backend = find_backend("auto")[0]
    assert f"<dt>backend</dt><dd>{backend}</dd>" in Path(once.report_url).read_text()


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, 9.0)])
def test_scales_out_of_bounds_are_refused(scales: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scales"):
        EvaluateConfig(scales=scales)
