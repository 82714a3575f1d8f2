"""What a lost or a broken answer of a store does to one read or one write."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tasks import stores
from tasks.plan import plan_run
from tasks.predict_config import PredictConfig
from tasks.reading import read_objects
from tasks.runs import Run
from tasks.shards import write_part_with
from tasks.stores import StoreUnavailable
from tests.faulty_store import Fault, faulty
from tests.tasks.pictures import Brightness, encoded, pixels, put, save_model


@pytest.mark.parametrize("fault", ["lost call", "lost answer", "500", "silent"])
def test_write_is_tried_again_and_stands_once(s3: Any, fault: Fault) -> None:
    place = s3.new_bucket()
    with faulty(s3.endpoint) as proxy:
        proxy.planned = [("PUT", name, fault) for name in ("created", "written", "_writable")]
        created = stores.create_bytes(f"{place}/created", b"first")
        stores.write_bytes(f"{place}/written", b"first")
        stores.require_writable(place)
        assert proxy.planned == []
        assert stores.create_bytes(f"{place}/created", b"second") is False

    assert created or fault in {"lost answer", "silent"}
    assert {e.key: stores.read_bytes(e.url) for e in stores.list_entries(place)} == {
        "created": b"first",
        "written": b"first",
    }


def test_part_and_manifest_whose_answers_were_lost_are_written(
    s3: Any, tmp_path: Path, rng: np.random.Generator
) -> None:
    place = s3.new_bucket()
    put(f"{place}/in", {"a.png": encoded(pixels(rng))})
    model, config = save_model(tmp_path / "model.safetensors"), PredictConfig()
    with faulty(s3.endpoint) as proxy:
        proxy.planned = [
            ("PUT", "manifest.parquet", "lost answer"),
            ("PUT", "part-", "lost answer"),
        ]
        plan = plan_run(f"{place}/in", model, f"{place}/out", config)
        report = write_part_with(Brightness(), plan.manifest, 0, config)
        assert proxy.planned == []
        assert plan_run(f"{place}/in", model, f"{place}/out", config).missing == ()
    assert report.part.ok == 1


def test_taken_name_is_known_on_stores_of_few_words(s3: Any) -> None:
    url = f"{s3.new_bucket()}/part"
    with faulty(s3.endpoint) as proxy:
        assert stores.create_bytes(url, b"first")
        proxy.planned = [("PUT", "/part", "bare answer")]
        assert not stores.create_bytes(url, b"second")
        assert proxy.planned == []
    assert stores.read_bytes(url) == b"first"


def test_large_file_whose_last_answer_was_lost_is_written(s3: Any, tmp_path: Path) -> None:
    """From 100 MB on s3fs writes in pieces, and asks again to put them together."""
    place, size = s3.new_bucket(), 101 << 20
    with (tmp_path / "large").open("wb") as file:
        file.truncate(size)
    with faulty(s3.endpoint, read_timeout=60) as proxy:
        proxy.planned = [("POST", "uploadId", fault) for fault in ("lost answer", "no such upload")]
        stores.create_file(f"{place}/large", tmp_path / "large")
        assert proxy.planned == []
    [entry] = stores.list_entries(place)
    assert entry.size == size


def test_cut_bodies_are_not_taken_for_objects(s3: Any) -> None:
    place, data = s3.new_bucket(), bytes(range(256)) * 100
    put(place, {"a": data, "b": data})
    with faulty(s3.endpoint) as proxy:
        proxy.planned = [("GET", name, "cut body") for name in ("/a", "/a", "/b", "list-type")]
        entries = list(stores.list_entries(place))
        assert read_objects(entries) == [data, data]
        assert proxy.planned == []

        proxy.planned = [("GET", "/a", "cut body"), ("GET", "/b", "cut body")]
        assert stores.read_bytes(f"{place}/a") == data
        with stores.open_input(f"{place}/b") as file:
            assert file.read() == data
        assert proxy.planned == []


@pytest.mark.parametrize("size", [1 << 20, 101 << 20], ids=["whole", "in pieces"])
def test_interrupted_upload_of_a_state_leaves_the_one_before(s3: Any, size: int) -> None:
    """The store gets half of a body, as from a process that is killed while it sends."""
    run = Run(f"{s3.new_bucket()}/run")
    run.write_state(b"before")
    with faulty(s3.endpoint, retries={"max_attempts": 0}, read_timeout=60) as proxy:
        proxy.planned = [("PUT", "state.safetensors", "cut upload")] * 100
        with pytest.raises(StoreUnavailable, match=r"cannot write .*state\.safetensors"):
            run.write_state(bytes(size))
        assert proxy.faults["cut upload"]
    assert run.read_state() == b"before"
    run.write_state(b"after")
    assert run.read_state() == b"after"
