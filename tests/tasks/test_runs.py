import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fcn.recipes import TrainConfig
from tasks import stores
from tasks.runs import Run, RunError, claim
from tasks.stores import StoreError
from tests.tasks.labelled import make_dataset

CONFIG = TrainConfig(backbone="squeezenet1_1", init="none", epochs=2)


def test_a_run_url_belongs_to_one_configuration(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    url = str(tmp_path / "run")
    assert claim(url, info, CONFIG) == claim(url, info, CONFIG)
    other = CONFIG.model_copy(update={"epochs": 3, "seed": 7})
    with pytest.raises(
        RunError,
        match=r"holds a training with other settings: epochs 2 there, 3 now, seed 0 there, 7 now\. "
        "Give another run_url",
    ):
        claim(url, info, other)


def test_a_run_url_belongs_to_one_dataset(tmp_path: Path) -> None:
    url = str(tmp_path / "run")
    claim(url, make_dataset(str(tmp_path / "one")), CONFIG)
    with pytest.raises(RunError, match="other settings: dataset"):
        claim(url, make_dataset(str(tmp_path / "two"), num_train=9), CONFIG)


def test_where_a_run_computes_does_not_matter(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    url = str(tmp_path / "run")
    claim(url, info, CONFIG)
    elsewhere = {"device": "cpu", "num_workers": 0, "evaluate_every": 9}
    claim(url, info, CONFIG.model_copy(update=elsewhere))


def test_credentials_in_init_are_not_kept(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    secret = CONFIG.model_copy(update={"init": "https://user:hush@host/model?token=hush"})
    claim(str(tmp_path / "run"), info, secret)
    assert "hush" not in (tmp_path / "run" / "config.json").read_text()


def test_credentials_in_a_run_url_are_refused_and_not_repeated(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    with pytest.raises(StoreError, match=r"s3://bucket/run was given with a user name") as caught:
        claim("s3://user:hush@bucket/run", info, CONFIG)
    assert "hush" not in str(caught.value)


def test_a_damaged_settings_file_is_told(tmp_path: Path) -> None:
    info = make_dataset(str(tmp_path / "set"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("[1, 2")
    with pytest.raises(RunError, match="no settings file of a run"):
        claim(str(tmp_path / "run"), info, CONFIG)


def test_metrics_are_lines_of_json(tmp_path: Path) -> None:
    run = claim(str(tmp_path / "run"), make_dataset(str(tmp_path / "set")), CONFIG)
    assert run.read_metrics() == []
    rows = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
    run.write_metrics(rows)
    assert run.read_metrics() == rows
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_a_process_killed_while_it_uploads_leaves_the_earlier_state(s3: Any) -> None:
    """A state of 120 MB goes to S3 in parts; only the last call makes it an object."""
    import boto3

    bucket = s3.new_bucket()
    run = Run(f"{bucket}/run")
    run.write_state(b"earlier")
    code = f"from tasks.runs import Run; Run({run.url!r}).write_state(bytes(120_000_000))"
    process = subprocess.Popen([sys.executable, "-c", code], env=os.environ)
    client, name = boto3.client("s3"), bucket.removeprefix("s3://")
    deadline = time.monotonic() + 200
    try:
        while not client.list_multipart_uploads(Bucket=name).get("Uploads"):
            assert process.poll() is None, "the upload ended before it could be interrupted"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.kill()
        status = process.wait()
    assert status < 0
    assert run.read_state() == b"earlier"


def test_starting_over_removes_state_and_model(tmp_path: Path) -> None:
    run = claim(str(tmp_path / "run"), make_dataset(str(tmp_path / "set")), CONFIG)
    run.start_over()
    run.write_state(b"state")
    run.write_best(b"best")
    run.write_model(b"model")
    assert run.is_done()
    assert run.find_best() == str(tmp_path / "run" / "best.safetensors")
    assert run.read_state() == b"state"
    run.start_over()
    assert not run.is_done()
    assert run.read_state() is None
    assert run.find_best() is None
    assert stores.exists(str(tmp_path / "run" / "config.json"))
