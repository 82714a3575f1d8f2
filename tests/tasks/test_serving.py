"""The pointer to the model that serves: never lost, never half, whoever writes at the same time."""

import hashlib
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fcn.errors import CheckpointError
from tasks import serving, stores
from tasks.models import find_model, load_model, read_model
from tasks.predict_config import PredictConfig
from tasks.serving import PromoteError, Promotion
from tests.tasks.pictures import save_model


def promotion(number: int, sha256: str = "a" * 64, **changes: Any) -> Promotion:
    given: dict[str, Any] = {
        "number": number, "model_url": f"m/{sha256}.safetensors", "sha256": sha256,
        "source_url": "run/best.safetensors", "promoted_at": datetime.now(UTC), "rule": "gain",
        "dataset_url": "set", "dataset_digest": "d", "split": "test", "num_images": 9,
        "mean_iu": 0.5, "mean_iu_low": 0.4, "mean_iu_high": 0.6,
    }  # fmt: skip
    return Promotion(**(given | changes))


@pytest.fixture(params=["local", "s3"])
def models_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "models")
    return f"{request.getfixturevalue('s3').new_bucket()}/models"


def test_a_pointer_names_the_model_beside_it(models_url: str) -> None:
    assert serving.newest(models_url) is None
    model = serving.keep_model(models_url, b"weights")
    serving.publish(models_url, promotion(0, hashlib.sha256(b"weights").hexdigest()))
    assert serving.resolve(serving.serving_url(models_url)) == model
    assert read_model(model) == b"weights"
    assert serving.resolve("run/model.safetensors") == "run/model.safetensors"


def test_models_url_may_be_the_folder_where_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    serving.publish(".", promotion(0))
    assert serving.resolve("serving.json") == "a" * 64 + ".safetensors"


def test_a_promoted_model_is_never_written_twice_and_is_checked(models_url: str) -> None:
    url = serving.keep_model(models_url, b"weights")
    assert serving.keep_model(models_url, b"weights") == url
    stores.write_bytes(url, b"others")
    for use in (lambda: read_model(url), lambda: serving.keep_model(models_url, b"weights")):
        with pytest.raises(CheckpointError, match="another SHA-256 than its name says"):
            use()


def test_a_run_loads_no_other_model_than_the_name_says(tmp_path: Path) -> None:
    save_model(tmp_path / "model")
    data = (tmp_path / "model").read_bytes()
    url = str(tmp_path / f"{hashlib.sha256(data).hexdigest()}.safetensors")
    save_model(Path(url), seed=1)
    for replaced in (Path(url).read_bytes(), b"no model at all"):
        stores.write_bytes(url, replaced)
        with pytest.raises(CheckpointError, match="another SHA-256 than its name says"):
            load_model(find_model(url), PredictConfig(device="cpu"))
    stores.write_bytes(url, data)
    card = load_model(find_model(url), PredictConfig(device="cpu")).card
    assert f"{card.digest}.safetensors" == Path(url).name


def test_of_two_promotions_over_the_same_model_the_second_fails(models_url: str) -> None:
    serving.publish(models_url, promotion(0))
    serving.publish(models_url, promotion(1, "b" * 64))
    with pytest.raises(PromoteError, match=r"m/b+\.safetensors was promoted meanwhile"):
        serving.publish(models_url, promotion(1, "c" * 64))
    assert _pointed(models_url) == "b" * 64


def _pointed(models_url: str) -> str:
    return str(json.loads(stores.read_bytes(serving.serving_url(models_url)))["sha256"])


def test_the_store_that_lost_its_answer_does_not_fail_a_promotion(models_url: str) -> None:
    ours = promotion(0)
    serving.publish(models_url, ours)
    serving.publish(models_url, ours)  # the client asked again: the record is there, and is ours
    assert serving.newest(models_url) == ours


def test_racing_promotions_lose_none(models_url: str) -> None:
    """Five at once, each until it won; then every number has one record, the last one serves."""
    start = threading.Barrier(5)

    def promote(digit: str) -> None:
        start.wait()
        while True:
            before = serving.point(models_url)
            number = before.number + 1 if before else 0
            try:
                serving.publish(models_url, promotion(number, digit * 64))
            except PromoteError:
                continue
            return

    with ThreadPoolExecutor(5) as threads:
        list(threads.map(promote, "12345"))
    records = [
        json.loads(stores.read_bytes(entry.url))
        for entry in stores.list_entries(f"{models_url}/promotions")
    ]
    assert [record["number"] for record in records] == list(range(5))
    assert {record["sha256"][0] for record in records} == set("12345")
    assert _pointed(models_url) == records[-1]["sha256"]


def test_a_slow_writer_does_not_leave_an_older_model_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first promotion writes its pointer only after the second one is through."""
    url, write = str(tmp_path), stores.write_bytes

    def late(target: str, data: bytes) -> None:
        monkeypatch.setattr(stores, "write_bytes", write)
        serving.publish(url, promotion(1, "b" * 64))
        write(target, data)

    monkeypatch.setattr(stores, "write_bytes", late)
    serving.publish(url, promotion(0))
    assert _pointed(url) == "b" * 64


def test_a_pointer_left_behind_by_a_killed_promotion_is_mended(models_url: str) -> None:
    serving.publish(models_url, promotion(0))
    old = stores.read_bytes(serving.serving_url(models_url))
    serving.publish(models_url, promotion(1, "b" * 64))
    stores.write_bytes(serving.serving_url(models_url), old)
    found = serving.point(models_url)
    assert found is not None
    assert (found.number, _pointed(models_url)) == (1, "b" * 64)


@pytest.mark.parametrize(
    "content", ["no JSON", "[]", '{"sha256": "../../etc/passwd"}', '{"format": 2}']
)
def test_what_is_no_pointer_of_ours_is_told(tmp_path: Path, content: str) -> None:
    path = tmp_path / "serving.json"
    path.write_text(content)
    with pytest.raises(PromoteError, match=r"serving\.json is no serving\.json of promote: "):
        serving.resolve(str(path))


def test_a_pointer_cannot_lead_elsewhere(tmp_path: Path) -> None:
    content = promotion(0).model_dump(mode="json") | {"sha256": "../../x"}
    (tmp_path / "serving.json").write_text(json.dumps(content))
    with pytest.raises(PromoteError, match="sha256"):
        serving.resolve(str(tmp_path / "serving.json"))
