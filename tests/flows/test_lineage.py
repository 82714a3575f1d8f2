"""The verb lineage after real training and prediction, as it is typed."""

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
from prefect.client.orchestration import get_client

import fcn
from fcn.recipes import TrainConfig
from flows.command_line import main
from flows.predict import predict
from flows.train import train
from tests.fcn.models import varied_model
from tests.fcn.scenes import CLASSES
from tests.tasks.labelled import make_dataset
from tests.tasks.pictures import encoded, pixels, put

pytestmark = pytest.mark.usefixtures("prefect_server")


def test_a_row_leads_to_the_training_of_its_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rng: np.random.Generator,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tmp_path = tmp_path / "odd #1 [x] 100%"  # no asset has such a key
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)  # relative URLs are followed from any folder
    info = make_dataset("set", num_train=4, num_val=2)
    random = varied_model("squeezenet1_1", 2)
    fcn.save(fcn.Model(random.net, CLASSES, random.input), "first.safetensors")
    config = TrainConfig(
        backbone="squeezenet1_1", init="first.safetensors", epochs=1, batch_size=4,
        crop_size=(32, 32), num_workers=0,
    )  # fmt: skip
    train("set", "run", config)
    put("in", {"a.png": encoded(pixels(rng))})
    predict("in", "run/model.safetensors", "out")
    monkeypatch.chdir("/")
    capfd.readouterr()

    assert main(["lineage", "--key", "a.png", "--output-url", f"{tmp_path}/out"]) == 0

    lines = capfd.readouterr().out.splitlines()
    found = dict(line.split(": ", 1) for line in lines)
    digest = hashlib.sha256((tmp_path / "run" / "model.safetensors").read_bytes()).hexdigest()
    first = hashlib.sha256((tmp_path / "first.safetensors").read_bytes()).hexdigest()
    assert found["row"] == "a.png: ok, 12 x 16 pixels"
    assert found["model"] == f"{tmp_path}/run/model.safetensors, SHA-256 {digest}"
    assert found["model file"] == "has this SHA-256"
    assert found["model dataset"] == f"{tmp_path}/set, digest {info.digest}, of squares"
    assert found["model dataset now"] == "has this digest"
    assert "init first.safetensors" in found["model settings"]
    assert "split val" in found["model scores"]
    assert found["model trained by"].startswith("fcn-flows ")
    assert found["predicted by"].startswith("fcn-flows ")
    assert found["model first weights"] == f"{tmp_path}/first.safetensors, SHA-256 {first}"
    assert found["model first weights network"] == "FCN-8s on squeezenet1_1, 2 classes"
    assert main(["lineage", "--key", "b.png", "--output-url", f"{tmp_path}/out"]) == 1
    assert "error: b.png has no row at" in capfd.readouterr().err


def test_assets_tell_what_was_made_of_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    random = varied_model("squeezenet1_1", 2)
    model = tmp_path / "model.safetensors"
    fcn.save(fcn.Model(random.net, CLASSES, random.input), model)
    put(f"{tmp_path}/in", {"a.png": encoded(pixels(rng))})
    predict(f"{tmp_path}/in", str(model), f"{tmp_path}/out")
    key = f"file://{tmp_path}/out"
    wanted = {
        "filter": {
            "event": {"name": ["prefect.asset.materialization.succeeded"]},
            "resource": {"id": [key]},
        }
    }
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while not (found := client._client.post("/events/filter", json=wanted).json()["events"]):
            assert time.monotonic() < deadline, "no event"
            time.sleep(0.2)
    related = {one["prefect.resource.id"] for one in found[0]["related"]}
    assert {f"file://{tmp_path}/in", f"file://{model}", "fcn-flows"} <= related
    assert found[0]["resource"]["prefect.resource.name"] == "prediction"
    assert found[0]["payload"]["run"] == 0
