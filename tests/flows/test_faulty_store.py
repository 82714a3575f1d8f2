"""A prediction through a network and a store of which a tenth of the calls go wrong."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flows.predict import predict
from tasks import parts, stores
from tasks.plan import plan_run
from tasks.predict import PredictConfig, plan_prediction, publish_prediction
from tests.faulty_store import FAULTS, faulty
from tests.tasks.pictures import encoded, pixels, put, save_model

pytestmark = pytest.mark.usefixtures("prefect_server")

CONFIG = PredictConfig(images_per_shard=30, sinks=("parquet", "png"), max_failed=0.1)


@pytest.fixture
def given(s3: Any, tmp_path: Path, rng: np.random.Generator) -> tuple[str, str, str]:
    """URLs of 90 images, of a model and of an output, all in a new bucket."""
    bucket = str(s3.new_bucket())
    put(f"{bucket}/in", {f"{index:02}.png": encoded(pixels(rng)) for index in range(90)})
    save_model(tmp_path / "model")
    stores.create_file(f"{bucket}/model.safetensors", tmp_path / "model")
    return f"{bucket}/in", f"{bucket}/model.safetensors", f"{bucket}/out"


def take(prefix: str) -> dict[str, bytes]:
    """The objects below a prefix, which are removed."""
    entries = list(stores.list_entries(prefix))
    found = {entry.key: stores.read_bytes(entry.url) for entry in entries}
    for entry in entries:
        stores.remove(entry.url)
    return found


def test_faulty_store_changes_nothing(s3: Any, given: tuple[str, str, str]) -> None:
    predict(*given, CONFIG)
    undisturbed = take(given[2])

    with faulty(s3.endpoint, rate=0.1) as proxy:
        summary = predict(*given, CONFIG)

    assert (summary.rows, summary.ok, summary.segmented) == (90, 90, 90)
    assert take(given[2]) == undisturbed
    assert proxy.faults.keys() == set(FAULTS)


def test_objects_that_change_or_vanish_after_the_listing_are_rows_and_done_again(
    s3: Any, given: tuple[str, str, str], rng: np.random.Generator
) -> None:
    collection, _, output = given
    config = CONFIG.model_copy(update={"max_failed": 1.0})
    with faulty(s3.endpoint, rate=0.1, seed=1):
        plan_run(*given, config)
        stores.remove(f"{collection}/10.png")
        old = stores.read_bytes(f"{collection}/40.png")
        larger, other = encoded(pixels(rng, 40, 40)), old[:-1] + bytes([old[-1] ^ 1])
        put(collection, {"20.png": larger, "30.png": old[:50], "40.png": other})
        first = predict(*given, config)
        failed = {row["key"]: row["error_class"] for row in parts.failures(output, 0, 9)}
        second = predict(*given, config)

    assert (first.rows, first.ok, first.failed) == (90, 87, 3)
    assert failed == {
        "10.png": "ObjectVanished",
        "20.png": "ObjectChanged",
        "30.png": "ObjectChanged",
    }
    assert second.segmented == 3
    rows = {row["key"]: row for row in parts.read(output).to_table().to_pylist()}
    assert len(rows) == 90
    assert (rows["20.png"]["run"], rows["20.png"]["height"]) == (1, 40)
    assert (rows["30.png"]["run"], rows["30.png"]["error_class"]) == (1, "TruncatedImage")
    assert rows["40.png"]["run"] == 1  # of its old size: told by its etag


def test_planning_and_publishing_are_tried_again(
    s3: Any, given: tuple[str, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for one in (plan_prediction, publish_prediction):
        monkeypatch.setattr(one, "retry_delay_seconds", [0.1] * 4)
    with faulty(s3.endpoint, retries={"max_attempts": 0}) as proxy:
        proxy.planned = [("GET", "list-type=2", "503"), ("PUT", "_index.json", "503")]
        summary = predict(*given, CONFIG)
    assert proxy.planned == []
    assert (summary.ok, summary.segmented) == (90, 90)
    assert parts.is_indexed(given[2])
