"""The flow quantise on a real server: a model that predicts, or the scores why there is none."""

import shutil
from pathlib import Path

import pyarrow.compute as pc
import pytest

import fcn
from fcn.recipes import TrainConfig
from flows.evaluate import EvaluateConfig, evaluate
from flows.predict import predict
from flows.quantise import QuantiseConfig, quantise
from flows.train import train
from tasks import parts, stores
from tasks.dataset import DatasetError
from tasks.predict_config import PredictConfig
from tasks.quantise import QuantiseError, spread
from tasks.stores import StoreError
from tests.fcn.scenes import squares
from tests.tasks.labelled import make_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")


@pytest.fixture(scope="module")
def trained(
    prefect_server: None, tmp_path_factory: pytest.TempPathFactory, squeezenet_npz: Path
) -> Path:
    """A folder with a dataset of squares and a model that finds them."""
    place = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("XDG_CACHE_HOME", str(place / "cache"))
        make_dataset(str(place / "set"), num_train=16, num_val=6)
        config = TrainConfig(
            backbone="squeezenet1_1", init=str(squeezenet_npz), epochs=8, batch_size=2,
            crop_size=None, num_workers=0, evaluate_every=8,
        )  # fmt: skip
        summary = train(str(place / "set"), str(place / "run"), config)
    assert summary.mean_iu > 0.8
    shutil.copy(place / "run" / "model.safetensors", place / "model.safetensors")
    return place


@pytest.fixture(autouse=True)
def _cache(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(trained / "cache"))


def test_quantised_model_scores_as_told_and_predicts(trained: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "model-int8.safetensors")
    model_url = str(trained / "model.safetensors")
    summary = quantise(
        str(trained / "set"), model_url, url, config=QuantiseConfig(num_images=8, max_loss=2)
    )
    facts = fcn.load(url).facts["quantised"]
    assert facts["mean_iu"] == summary.mean_iu > 0.8
    assert facts["quantised_mean_iu"] == summary.quantised_mean_iu > 0.8
    assert summary.quantised_mean_iu != summary.mean_iu
    assert summary.num_images == 6
    scores = evaluate(str(trained / "set"), url, str(tmp_path / "report"), "val", EvaluateConfig())
    assert scores.mean_iu == summary.quantised_mean_iu
    for pair in squares(3, seed=5):
        stores.write_bytes(str(tmp_path / "in" / f"{len(pair.image)}.png"), pair.image)
    predict(str(tmp_path / "in"), url, str(tmp_path / "out"), PredictConfig())
    rows = parts.read(str(tmp_path / "out")).to_table(columns=["status"])
    assert pc.all(pc.equal(rows["status"], "ok")).as_py()


def test_loss_of_accuracy_is_refused_with_both_scores(trained: Path, tmp_path: Path) -> None:
    """One scale for channels of very different size leaves no steps for the small ones."""
    model = fcn.load(trained / "model.safetensors")
    first = model.net.get_submodule("trunk.features.0")
    then = model.net.get_submodule("trunk.features.3.squeeze")
    for weights in (first.weight.data, first.bias.data):  # type: ignore[union-attr]
        weights[:8] *= 1e4
    then.weight.data[:, :8] /= 1e4  # type: ignore[union-attr]
    fcn.save(model, tmp_path / "uneven.safetensors")
    url = tmp_path / "model-int8.safetensors"
    message = r"scores a mean IU of [\d.]+ % on val, [\d.]+ points less than the [89]\d\.\d\d % of"
    with pytest.raises(QuantiseError, match=message):
        quantise(str(trained / "set"), str(tmp_path / "uneven.safetensors"), str(url))
    assert not url.exists()


def test_a_model_is_quantised_once_and_never_overwritten(trained: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "model-int8.safetensors")
    model_url, config = str(trained / "model.safetensors"), QuantiseConfig(max_loss=100)
    with pytest.raises(QuantiseError, match="a file of its own"):
        quantise(str(trained / "set"), model_url, model_url, config=config)
    quantise(str(trained / "set"), model_url, url, config=config)
    with pytest.raises(QuantiseError, match="quantised already"):
        quantise(str(trained / "set"), url, str(tmp_path / "again.safetensors"), config=config)


def test_a_mistyped_model_or_split_leaves_nothing(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="nothing there"):
        quantise(str(trained / "set"), str(trained / "none"), str(tmp_path / "new" / "q"))
    with pytest.raises(DatasetError, match="no split 'tset'"):
        quantise(
            str(trained / "set"),
            str(trained / "model.safetensors"),
            str(tmp_path / "new" / "q"),
            split="tset",
        )
    assert not (tmp_path / "new").exists()


def test_images_are_spread_over_the_split() -> None:
    assert spread(10, 4) == [0, 2, 5, 7]
    assert spread(3, 64) == [0, 1, 2]
