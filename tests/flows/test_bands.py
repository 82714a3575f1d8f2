"""A band through every flow: from folders to masks, which it alone tells apart."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import fcn
from fcn.bands import decode_stacked
from fcn.errors import CheckpointError, TrainingError
from fcn.images import decode_image
from fcn.masks import decode_mask
from fcn.recipes import TrainConfig
from flows.browse import browse
from flows.compact import compact
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.predict import predict
from flows.promote import promote
from flows.quantise import quantise
from flows.train import train
from flows.verify import verify
from tasks import parts
from tasks.evaluate import EvaluateConfig
from tasks.predict_config import PredictConfig
from tasks.promote import PromoteConfig
from tasks.quantise import QuantiseConfig
from tests.fcn.test_bands_in_training import scenes
from tests.flows.spread import objects

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = TrainConfig(
    backbone="squeezenet1_1", init="none", epochs=2, batch_size=4, crop_size=(40, 40),
    num_workers=0, evaluate_every=2, device="cpu",
)  # fmt: skip
CONFIG = PredictConfig(backend="torch", images_per_shard=4)


def write_source(folder: Path, *, with_bands: bool = True) -> str:
    """Twelve labelled scenes with their depth."""
    for name in ("images", "masks", "bands-depth"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("near\nfar\n")
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for index, scene in enumerate(scenes(12)):
        lists["train" if index < 8 else "val"].append(scene.key)
        (folder / f"images/{scene.key}.png").write_bytes(scene.image)
        (folder / f"masks/{scene.key}.png").write_bytes(scene.label)
        if with_bands:
            (folder / f"bands-depth/{scene.key}.tif").write_bytes(scene.bands["depth"] or b"")
    (folder / "splits.json").write_text(json.dumps(lists))
    if not with_bands:
        (folder / "bands-depth").rmdir()
    return str(folder)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_source(tmp_path_factory.mktemp("labelled"))


def assert_masks_are_the_predictors(output: str, model: fcn.Model) -> None:
    predictor = fcn.Predictor(model, device="cpu")
    for row, scene in zip(parts.read(output).to_table().to_pylist(), scenes(12), strict=True):
        image = decode_image(scene.image).pixels
        (label,) = predictor([decode_stacked(image, scene.bands, model.input.bands)])
        assert np.array_equal(decode_mask(row["mask"]["bytes"]), label)


@pytest.mark.slow
def test_a_band_from_folders_to_masks(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, run, output = (str(tmp_path / name) for name in ("dataset", "run", "out"))

    info = ingest(source, dataset)
    (depth,) = info.bands
    assert (depth.name, depth.dtype) == ("depth", "float32")
    assert 2 < depth.mean < 8

    model_url = train(dataset, run, SETTINGS).model_url
    model = fcn.load(model_url)
    assert model.input.bands == (depth,)
    assert model.net.in_channels == 4
    finer = SETTINGS.model_copy(update={"init": model_url, "stride": 4, "epochs": 1})
    assert fcn.load(train(dataset, f"{run}-4", finer).model_url).input.bands == (depth,)

    looks = EvaluateConfig(flip=True, scales=(1.0, 1.5), num_examples=1)
    for config in (EvaluateConfig(num_examples=1, backend="torch"), looks):
        assert (
            0 < evaluate(dataset, model_url, str(tmp_path / "report"), config=config).mean_iu <= 1
        )
    promoted = PromoteConfig(rule="always", backend="torch")
    assert promote(dataset, model_url, str(tmp_path / "models"), config=promoted)
    whole = str(tmp_path / "whole.safetensors")
    quantise(dataset, model_url, whole, config=QuantiseConfig(max_loss=100))
    assert fcn.load(whole).input.bands == (depth,)

    predict(f"{source}/images/0[0-4].png", model_url, output, CONFIG)
    predict(f"{source}/images", model_url, output, CONFIG)
    assert verify(output).masks == 12
    assert compact(output).rows == 12
    assert "bands" in pq.read_schema(Path(output, "manifest/run=00002/manifest.parquet")).names
    assert predict(f"{source}/images", model_url, output, CONFIG).segmented == 0
    assert_masks_are_the_predictors(output, model)
    assert Path(browse(output).page_url).read_text("utf-8").count('alt="mask of ') == 12

    rows = str(tmp_path / "out-rows")
    predict(f"{dataset}/data", model_url, rows, CONFIG)
    found = parts.read(rows).to_table().to_pylist()
    assert {row["status"] for row in found} == {"ok"}
    masks = {row["mask"]["bytes"] for row in parts.read(output).to_table().to_pylist()}
    assert {row["mask"]["bytes"] for row in found} == masks


def test_a_trunk_for_the_bands_from_folders_to_masks(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, output = str(tmp_path / "dataset"), str(tmp_path / "out")
    ingest(source, dataset)
    config = SETTINGS.model_copy(update={"late_fusion": True})
    model_url = train(dataset, str(tmp_path / "run"), config).model_url
    model = fcn.load(model_url)
    assert (model.net.in_channels, model.net.modalities) == (4, (3, 1))
    for trunk in (model.net, model.net.beside[0]):
        assert trunk.score_fr.weight.any()  # zero at first
    predict(f"{source}/images", model_url, output, CONFIG)
    assert_masks_are_the_predictors(output, model)


def test_a_model_is_not_for_datasets_without_its_band(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, plain = str(tmp_path / "dataset"), str(tmp_path / "plain")
    ingest(source, dataset)
    ingest(write_source(tmp_path / "source", with_bands=False), plain)
    config = SETTINGS.model_copy(update={"epochs": 1})
    colours = train(plain, str(tmp_path / "colours"), config).model_url
    with pytest.raises(TrainingError, match="late_fusion gives the bands a trunk of their own"):
        train(plain, str(tmp_path / "two"), config.model_copy(update={"late_fusion": True}))
    with_band = config.model_copy(update={"init": colours})
    model_url = train(dataset, str(tmp_path / "run"), with_band).model_url
    with pytest.raises(
        CheckpointError, match=r"sees the bands depth \(float32\), the dataset .* has none"
    ):
        evaluate(plain, model_url, str(tmp_path / "report"))
    seen = evaluate(dataset, colours, str(tmp_path / "report"))  # of which it sees the colours
    assert seen.num_images == 4


@pytest.mark.slow
def test_spread_over_dask_the_output_is_the_same_bytes(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    ingest(source, str(tmp_path / "dataset"))
    model_url = train(
        str(tmp_path / "dataset"), str(tmp_path / "run"), SETTINGS.model_copy(update={"epochs": 1})
    ).model_url
    here = CONFIG.model_copy(update={"network_cores": 2, "shards_per_partition": 1})
    there = here.model_copy(update={"fan_out": "dask", "partitions_at_once": 2})
    for name, config in (("here", here), ("there", there)):
        predict(f"{source}/images", model_url, str(tmp_path / name), config)
    assert objects(str(tmp_path / "there")) == objects(str(tmp_path / "here"))
