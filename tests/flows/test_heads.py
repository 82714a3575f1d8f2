"""Two heads over one trunk, from folders of masks to a column for each."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset

import fcn
from fcn.masks import decode_mask, encode_mask
from fcn.recipes import TrainConfig
from flows.browse import browse
from flows.compact import compact
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.predict import predict
from flows.promote import promote
from flows.quantise import QuantiseConfig, quantise
from flows.train import train
from flows.verify import verify
from tasks import parts
from tasks.evaluate import EvaluateConfig
from tasks.masks import Masks
from tasks.predict_config import PredictConfig
from tests.fcn.scenes import squares

pytestmark = pytest.mark.usefixtures("prefect_server")

SETTINGS = TrainConfig(
    backbone="squeezenet1_1", init="none", epochs=1, batch_size=4, crop_size=(32, 32),
    num_workers=0, evaluate_every=1, class_weights="median_frequency",
)  # fmt: skip


def halves(mask: bytes) -> bytes:
    """A second task on the same image: 0 above, 1 below, and 2 where the square is."""
    label = decode_mask(mask)
    half = (np.arange(len(label)) >= len(label) // 2).astype(np.uint8)
    return encode_mask(np.where(label == 1, np.uint8(2), half[:, None]))


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Twelve labelled images; one of each split is not labelled for the second head."""
    folder = tmp_path / "labelled"
    for name in ("images", "masks", "masks-layout"):
        (folder / name).mkdir(parents=True)
    (folder / "classes.txt").write_text("ground\nsquare\n")
    (folder / "classes-layout.txt").write_text("above\nbelow\nsquare\n")
    lists: dict[str, list[str]] = {"train": [], "val": []}
    for index, pair in enumerate(squares(12)):
        split = "train" if index < 8 else "val"
        lists[split].append(f"{index:02d}")
        (folder / "images" / f"{index:02d}.png").write_bytes(pair.image)
        (folder / "masks" / f"{index:02d}.png").write_bytes(pair.label)
        if index not in (0, 8):
            (folder / "masks-layout" / f"{index:02d}.png").write_bytes(halves(pair.label))
    (folder / "splits.json").write_text(json.dumps(lists))
    return str(folder)


@pytest.mark.slow
def test_two_heads_from_folders_to_columns(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset, run, output = (str(tmp_path / name) for name in ("dataset", "run", "out"))

    info = ingest(source, dataset)
    assert info.further_classes["layout"].names == ("above", "below", "square")
    assert {f.kind: f.count for f in info.audit} == {"unlabelled_head": 1}
    rows = load_dataset(dataset, cache_dir=str(tmp_path / "hf"))["train"]
    assert rows[0]["label_layout"] is None
    assert (np.asarray(rows[1]["label_layout"]) == 2).any()

    summary = train(dataset, run, SETTINGS)
    model = fcn.load(summary.model_url)
    assert model.net.heads == {"main": 2, "layout": 3}
    assert model.facts["scores"]["further"]["layout"]["iu"]
    evaluated = evaluate(
        dataset, summary.model_url, str(tmp_path / "report"), config=EvaluateConfig(num_examples=1)
    )
    assert 0 < evaluated.further_mean_iu["layout"] <= 1
    page = Path(evaluated.report_url).read_text("utf-8")
    assert "Head layout" in page
    assert page.count("Confusion matrix, rows normalised") == 2
    scores = pq.read_table(evaluated.images_url).to_pylist()
    assert (scores[0]["pixels_layout"], scores[0]["mean_iu_layout"]) == (0, None)
    assert scores[1]["pixels_layout"] == 40 * 48

    promoted = promote(dataset, summary.model_url, str(tmp_path / "models"))
    assert promoted.further_mean_iu["layout"] == evaluated.further_mean_iu["layout"]
    lossy = QuantiseConfig(num_images=2, max_loss=100)
    quantised = quantise(dataset, summary.model_url, str(tmp_path / "q.safetensors"), config=lossy)
    assert quantised.further_mean_iu["layout"] == pytest.approx(
        evaluated.further_mean_iu["layout"], abs=0.01
    )
    assert 0 < quantised.quantised_further_mean_iu["layout"] <= 1

    collection = f"{source}/images"
    config = PredictConfig(sinks=("parquet", "png"), images_per_shard=5)
    predict(f"{collection}/0[0-4].png", summary.model_url, output, config)
    predict(collection, summary.model_url, output, config)
    assert verify(output).masks == 12
    assert compact(output).rows == 12
    assert verify(output).masks == 12

    index = json.loads(Path(output, "_index.json").read_text())
    assert [row["name"] for row in index["further_classes"]["layout"]] == [
        "above",
        "below",
        "square",
    ]
    predictor = fcn.Predictor(model)
    table = parts.read(output).to_table().to_pylist()
    masks = {mask.key: mask for mask in Masks(output)}
    for row, pair in zip(table, squares(12), strict=True):
        (found,) = predictor.predict([fcn.images.decode_image(pair.image).pixels])
        expected = found.further["layout"]
        assert (decode_mask(row["mask_layout"]["bytes"]) == expected.label).all()
        assert (decode_mask(row["mask"]["bytes"]) == found.label).all()
        assert row["class_pixels_layout"] == np.bincount(expected.label.flat, minlength=3).tolist()
        assert row["confidence_layout"] == pytest.approx(expected.confidence)
        saved = Path(output, "masks-layout", f"{row['key']}.png").read_bytes()
        assert saved == row["mask_layout"]["bytes"]
        assert (masks[row["key"]].further["layout"].label.numpy() == expected.label).all()

    browsed = Path(browse(output).page_url).read_text("utf-8")
    assert browsed.count('alt="layout of ') == browsed.count('alt="mask of ') == 12
