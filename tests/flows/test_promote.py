"""The flow promote on a real server: who serves, what is kept, what automations hear."""

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from prefect.client.orchestration import get_client

import fcn
from fcn.errors import CheckpointError
from flows.evaluate import evaluate
from flows.predict import predict
from flows.promote import promote
from tasks import manifest, stores
from tasks.dataset import DatasetError
from tasks.promote import EVENT, PromoteConfig
from tasks.stores import StoreError
from tests.fcn.models import varied_model
from tests.fcn.scenes import CLASSES
from tests.tasks.labelled import make_dataset
from tests.tasks.pictures import encoded, pixels, put

pytestmark = pytest.mark.usefixtures("prefect_server")


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def save(path: Path, *, favours: int | None = None, names: tuple[str, ...] = CLASSES.names) -> None:
    """A model with random weights; or one that sees a single class everywhere."""
    random = varied_model("squeezenet1_1", len(names))
    classes = fcn.Classes(names, fcn.Classes.named(list(names)).palette)
    if favours is not None:
        with torch.no_grad():
            for name, weight in random.net.named_parameters():
                if "score" in name:
                    weight.zero_()
                    if name.endswith("score_fr.bias"):
                        weight[favours] = 1.0
    fcn.save(fcn.Model(random.net, classes, random.input), path)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a dataset; ground is most of it, so that a net that sees ground wins."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    make_dataset(str(tmp_path / "set"), num_val=6)
    save(tmp_path / "ground.safetensors", favours=0)
    save(tmp_path / "square.safetensors", favours=1)
    return tmp_path


def run(place: Path, challenger: str, **config: Any) -> Any:
    return promote(
        str(place / "set"),
        str(place / f"{challenger}.safetensors"),
        str(place / "models"),
        config=PromoteConfig(**config),
    )


def served(place: Path) -> dict[str, Any]:
    return dict(json.loads((place / "models" / "serving.json").read_bytes()))


def test_the_better_model_serves_the_worse_one_does_not_and_one_can_go_back(place: Path) -> None:
    first = run(place, "square")
    assert first.promoted == "yes: no model served before"
    assert served(place)["sha256"] == digest(place / "square.safetensors")
    better = run(place, "ground")
    assert better.promoted.startswith("yes: the gain in mean IU is at least +")
    pointer = served(place)
    assert pointer["sha256"] == digest(place / "ground.safetensors")
    assert pointer["previous"]["sha256"] == digest(place / "square.safetensors")
    assert pointer["gain"] == pytest.approx(better.mean_iu - first.mean_iu)
    assert 0 < pointer["gain_low"] <= pointer["gain"] <= pointer["gain_high"]
    assert (pointer["split"], pointer["num_images"], pointer["rule"]) == ("val", 6, "gain")
    worse = run(place, "square")
    assert worse.promoted.startswith("no: the gain in mean IU is at least -")
    assert worse.model_url == pointer["model_url"]
    assert served(place) == pointer
    previous = pointer["previous"]["model_url"]
    back = PromoteConfig(rule="always")
    promote(str(place / "set"), previous, str(place / "models"), config=back)
    assert served(place)["sha256"] == digest(place / "square.safetensors")
    assert (served(place)["rule"], served(place)["gain"] < 0) == ("always", True)


def test_the_serving_model_is_not_the_file_that_was_promoted(
    place: Path, rng: np.random.Generator
) -> None:
    run(place, "ground")
    serving = digest(place / "ground.safetensors")
    save(place / "ground.safetensors", favours=1)  # the next training over the same run_url
    put(str(place / "in"), {"a.png": encoded(pixels(rng))})
    pointer = str(place / "models" / "serving.json")
    summary = predict(str(place / "in"), pointer, str(place / "out"))
    assert (summary.ok, summary.failed) == (1, 0)
    card = manifest.read(str(place / "out"), 0).card.model
    assert card.digest == serving
    assert card.url == str(place / "models" / f"{serving}.safetensors")
    assert evaluate(str(place / "set"), pointer, str(place / "report")).mean_iu > 0
    stores.write_bytes(card.url, (place / "square.safetensors").read_bytes())
    for use in (
        lambda: predict(str(place / "in"), pointer, str(place / "other")),
        lambda: evaluate(str(place / "set"), pointer, str(place / "report")),
    ):
        with pytest.raises(CheckpointError, match="another SHA-256 than its name says"):
            use()


def test_what_cannot_serve_is_refused_and_nothing_is_left(place: Path) -> None:
    with pytest.raises(StoreError, match="nothing there"):
        run(place, "mistyped")
    with pytest.raises(DatasetError, match="no split 'test'"):
        promote(
            str(place / "set"),
            str(place / "ground.safetensors"),
            str(place / "models"),
            split="test",
        )
    assert not (place / "models").exists()
    save(place / "other.safetensors", names=("ground", "circle"))
    (place / "bad.safetensors").write_bytes(b"no model")
    for name, text in (("other", "has 2 classes"), ("bad", "not a safetensors file")):
        with pytest.raises(CheckpointError, match=text):
            run(place, name)
    assert not (place / "models").exists()


def test_automations_hear_of_it(place: Path) -> None:
    run(place, "ground")
    sha256 = digest(place / "ground.safetensors")
    wanted = {"filter": {"event": {"name": [EVENT]}, "resource": {"id": [f"fcn.model.{sha256}"]}}}
    pointer = str(place / "models" / "serving.json")
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        heard: list[dict[str, Any]] = []
        while not heard:  # other tests promote the same model elsewhere
            assert time.monotonic() < deadline, "no event"
            time.sleep(0.2)
            events = client._client.post("/events/filter", json=wanted).json()["events"]
            heard = [event for event in events if event["payload"]["serving_url"] == pointer]
    assert heard[0]["payload"]["sha256"] == sha256
    name = heard[0]["resource"]["prefect.resource.name"]
    assert name == str(place / "models" / f"{sha256}.safetensors")
