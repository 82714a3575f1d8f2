"""From a row back to all it came of, by digests; what cannot be followed says why."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fcn
from tasks import manifest as manifests
from tasks import parts, provenance, serving, stores
from tasks.lineage import LineageError, lineage_lines
from tasks.merge import plan_merge, remove_merged, write_merged
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.shards import write_part
from tasks.stores import StoreError
from tests.fcn.models import varied_model
from tests.fcn.scenes import CLASSES
from tests.tasks.labelled import make_dataset
from tests.tasks.pictures import encoded, pixels, put
from tests.tasks.test_serving import promotion

CONFIG = PredictConfig(images_per_shard=2)


def save(path: Path, seed: int = 0, **facts: Any) -> str:
    """A model of two classes whose card tells these facts; its digest."""
    random = varied_model("squeezenet1_1", 2)
    random.net.score_fr.bias.data += seed  # type: ignore[operator, union-attr]
    fcn.save(fcn.Model(random.net, CLASSES, random.input, facts), path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def segment(place: Path, model: str = "model") -> None:
    """A run over the collection, done."""
    given = (str(place / "in"), str(place / f"{model}.safetensors"), str(place / "out"))
    plan = plan_run(*given, CONFIG)
    for shard in plan.missing:
        write_part(plan.manifest, shard, given[1], CONFIG)


def trace(place: Path, key: str = "2.png") -> dict[str, str]:
    return dict(lineage_lines(key, str(place / "out")))


@pytest.fixture
def place(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder with a dataset, a model fine-tuned from another, and three images."""
    info = make_dataset(str(tmp_path / "set"), num_train=2, num_val=2)
    dataset = {"digest": info.digest, "source": info.source, "url": info.url}
    first = save(tmp_path / "first.safetensors", dataset=dataset | {"digest": "d" * 64})
    save(
        tmp_path / "model.safetensors",
        seed=1,
        dataset=dataset,
        config={"epochs": 3, "learning_rate": 1e-3},
        code={"version": "1.2", "commit": "c" * 40, "dirty": True},
        scores={"split": "val", "mean_iu": 0.51234, "iu": [0.5, 0.6]},
        init={"url": str(tmp_path / "first.safetensors"), "sha256": first},
    )
    put(str(tmp_path / "in"), {f"{n}.png": encoded(pixels(rng)) for n in range(3)})
    return tmp_path


def test_a_row_is_followed_to_its_model_its_data_and_the_first_weights(place: Path) -> None:
    segment(place)
    found = trace(place)
    digest = hashlib.sha256((place / "model.safetensors").read_bytes()).hexdigest()
    first = hashlib.sha256((place / "first.safetensors").read_bytes()).hexdigest()
    info_digest = json.loads((place / "set" / "dataset.json").read_text())["digest"]
    card = manifests.read(str(place / "out"), 0).card
    assert found["row"] == "2.png: ok, 12 x 16 pixels"
    assert found["part"].startswith(f"{place}/out/parts/run=00000/part-00001.parquet, written 20")
    assert found["run"].startswith(f"00000 over {place}/in, planned 20")
    assert found["run digest"] == card.run_digest
    assert found["model"] == f"{place}/model.safetensors, SHA-256 {digest}"
    assert found["model file"] == "has this SHA-256"
    assert found["model network"] == "FCN-8s on squeezenet1_1, 2 classes"
    assert found["model dataset"] == f"{place}/set, digest {info_digest}, of squares"
    assert found["model dataset now"] == "has this digest"
    assert found["model settings"] == "epochs 3, learning_rate 0.001"
    assert found["model scores"] == "split val, mean_iu 0.5123"
    assert found["model trained by"].startswith(
        f"fcn-flows 1.2, commit {'c' * 40}, with changes that are in no commit, fcn-flows "
    )
    assert found["model first weights"] == f"{place}/first.safetensors, SHA-256 {first}"
    assert found["model first weights file"] == "has this SHA-256"
    assert found["model first weights dataset now"].startswith("is another one by now, digest ")
    assert found["model first weights settings"] == "unknown: the card does not tell"
    assert found["model first weights first weights"] == "unknown: the card does not tell"


def test_what_was_replaced_or_is_gone_is_told(place: Path) -> None:
    segment(place)
    other = save(place / "model.safetensors", seed=7)
    found = trace(place)
    assert found["model file"].startswith(f"is another one by now, SHA-256 {other}; it was repl")
    assert "model dataset" not in found
    (place / "model.safetensors").write_bytes(b"")
    assert "is another one by now" in trace(place)["model file"]
    (place / "model.safetensors").unlink()
    assert trace(place)["model file"] == (
        f"unknown: cannot read {place}/model.safetensors: nothing there"
    )


def test_datasets_and_first_weights_that_are_gone_are_told(place: Path) -> None:
    segment(place)
    (place / "set" / "dataset.json").unlink()
    (place / "first.safetensors").unlink()
    found = trace(place)
    assert found["model dataset now"].startswith(f"unknown: no dataset at {place}/set")
    assert found["model first weights file"].endswith("first.safetensors: nothing there")


def test_rows_that_compact_took_over_lead_to_the_model_that_made_them(
    place: Path, rng: np.random.Generator
) -> None:
    old = save(place / "old.safetensors", seed=3)
    segment(place, "old")
    (place / "in" / "2.png").unlink()  # its row stays; the others are done anew
    segment(place)
    output = str(place / "out")
    assert trace(place)["model"].endswith(old)
    parts.write_index(output, CLASSES)
    merge = plan_merge(output)
    assert merge is not None
    write_merged(merge)
    remove_merged(merge)
    found = trace(place)
    assert found["inherited"] == "compact took the row over from run 00000"
    assert found["run"].startswith("00002 ")
    assert found["model"] == f"{place}/old.safetensors, SHA-256 {old}"
    assert "inherited" not in trace(place, "1.png")
    assert trace(place, "1.png")["model"].startswith(f"{place}/model.safetensors, ")


def test_a_promoted_model_tells_where_it_was(place: Path) -> None:
    models_url, data = str(place / "models"), (place / "model.safetensors").read_bytes()
    url = serving.keep_model(models_url, data)
    for number in range(2):  # the second one serves a model of another digest
        sha256 = hashlib.sha256(data).hexdigest() if number == 0 else "e" * 64
        serving.publish(models_url, promotion(number, sha256, gain=0.0123))
    segment(place, f"models/{Path(url).stem}")
    assert (
        " UTC from run/best.safetensors, rule gain, gain +1.23 points on test"
        in (trace(place)["model promoted"])
    )


def test_a_failed_row_has_a_lineage_too(place: Path) -> None:
    put(str(place / "in"), {"bad.png": b"no image"})
    segment(place)
    found = trace(place, "bad.png")
    assert found["row"].startswith("bad.png: failed, UnsupportedImage: ")
    assert found["model file"] == "has this SHA-256"


def test_a_key_without_a_row_says_why(place: Path) -> None:
    with pytest.raises(StoreError, match="no manifest at"):
        trace(place)
    segment(place)
    with pytest.raises(LineageError, match=r"x\.png has no row at .*out: no manifest names it"):
        trace(place, "x.png")
    stores.remove(parts.part_url(str(place / "out"), 0, 1))
    with pytest.raises(LineageError, match="part-00001 is not there; finish it with predict"):
        trace(place)


def test_a_row_done_anew_but_not_yet_there_leads_to_the_older_one(place: Path) -> None:
    segment(place)
    save(place / "next.safetensors", seed=2)
    plan_run(str(place / "in"), str(place / "next.safetensors"), str(place / "out"), CONFIG)
    assert trace(place)["model"].startswith(f"{place}/model.safetensors, ")


def test_the_code_of_this_checkout_is_told() -> None:
    code = provenance.code_version()
    assert code["version"]
    if (provenance.ROOT / ".git").exists():
        assert code["commit"] is None or len(code["commit"]) == 40


def test_code_without_git_or_installation_is_told_as_such(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".git").mkdir()  # no checkout, though it looks like one
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    for path in ("/usr/bin:/bin", ""):
        provenance.code_version.cache_clear()
        monkeypatch.setenv("PATH", path)
        assert provenance.code_version()["commit"] is None
        assert provenance.code_version()["dirty"] is None
    provenance.code_version.cache_clear()
