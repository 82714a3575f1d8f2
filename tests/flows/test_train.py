"""The flows train and evaluate, on a real server: what they leave, and what they refuse."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    ArtifactFilterType,
)
from prefect.settings import get_current_settings
from prefect.states import State

import fcn
from fcn.errors import CheckpointError
from fcn.input import TORCHVISION
from fcn.recipes import TrainConfig
from flows.evaluate import evaluate
from flows.train import train
from flows.train_staged import train_staged
from tasks.dataset import DatasetError
from tasks.runs import RunError
from tasks.stages import plan_stages
from tasks.stores import StoreError
from tests.tasks.labelled import make_dataset

pytestmark = pytest.mark.usefixtures("prefect_server")

Trained = tuple[str, Path, State[Any]]


@pytest.fixture(scope="module")
def trained(prefect_server: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A dataset, the folder of a run that was trained on it, and the state it ended in."""
    folder = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        url, run = dataset(folder), folder / "run"
        return url, run, train(url, str(run), settings(), return_state=True)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def settings(**changes: Any) -> TrainConfig:
    defaults: dict[str, Any] = {
        "backbone": "squeezenet1_1", "init": "none", "epochs": 2, "batch_size": 4,
        "crop_size": (32, 32), "num_workers": 0, "evaluate_every": 1,
    }  # fmt: skip
    return TrainConfig(**(defaults | changes))


def dataset(tmp_path: Path) -> str:
    url = str(tmp_path / "set")
    make_dataset(url)
    return url


def test_a_training_that_cannot_begin_leaves_its_place_free(tmp_path: Path) -> None:
    url, run_url = dataset(tmp_path), str(tmp_path / "run")
    with pytest.raises(StoreError, match="nothing there"):
        train(url, run_url, settings(init=str(tmp_path / "none.npz")))
    assert Path(train(url, run_url, settings(epochs=1)).model_url).is_file()


def test_a_run_leaves_model_metrics_and_report(trained: Trained) -> None:
    _, run, state = trained
    summary = state.result()
    assert {path.name for path in run.iterdir()} >= {
        "model.safetensors", "metrics.jsonl", "report.html", "state", "curves.png", "confusion.png",
    }  # fmt: skip
    model = fcn.load(run / "model.safetensors")
    assert model.classes.names == ("ground", "square")
    assert model.facts["dataset"]["source"] == "squares"
    assert model.facts["config"]["epochs"] == 2
    assert model.facts["scores"]["mean_iu"] == pytest.approx(summary.mean_iu)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4]
    assert [row["epoch"] for row in rows if "mean_iu" in row] == [1, 2]


def test_a_finished_run_is_left_alone(trained: Trained) -> None:
    url, run, first = trained
    before = (run / "model.safetensors").stat().st_mtime_ns
    again = train(url, str(run), settings())
    assert again == first.result()
    assert (run / "model.safetensors").stat().st_mtime_ns == before


def test_another_configuration_at_the_same_run_url_is_refused(trained: Trained) -> None:
    url, run, _ = trained
    before = (run / "model.safetensors").read_bytes()
    with pytest.raises(RunError, match="seed 0 there, 1 now"):
        train(url, str(run), settings(seed=1))
    assert (run / "model.safetensors").read_bytes() == before


def test_a_killed_training_resumes_to_the_same_bits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A real process, killed with SIGKILL after its first state was saved."""
    url = dataset(tmp_path)
    config = settings(epochs=8, batch_size=2, accumulate=2, ema_decay=0.9)
    train(url, str(tmp_path / "whole"), config)
    assert "trained 16 steps in" in caplog.text
    assert "epoch 0 of" not in caplog.text
    script = (
        "from flows.train import train, TrainConfig\n"
        f"train({url!r}, {str(tmp_path / 'killed')!r}, "
        f"TrainConfig.model_validate_json({config.model_dump_json()!r}))"
    )
    state = tmp_path / "killed" / "state" / "state.safetensors"
    server = get_current_settings().to_environment_variables(exclude_unset=True)
    process = subprocess.Popen(
        [sys.executable, "-c", script], env=os.environ | server, start_new_session=True
    )
    deadline = time.monotonic() + 200
    try:
        while not state.exists():
            assert process.poll() is None, "the training ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()

    caplog.clear()
    train(url, str(tmp_path / "killed"), config)
    (resumed,) = re.findall(r"resumed at step (\d+) of 16", caplog.text)
    assert f"trained {16 - int(resumed)} of 16 steps in" in caplog.text
    for name in ("model.safetensors", "best.safetensors"):
        assert_same_model(tmp_path / "whole" / name, tmp_path / "killed" / name)
    steps = [
        json.loads(line).get("step")
        for line in (tmp_path / "killed" / "metrics.jsonl").read_text().splitlines()
        if "loss" in line
    ]
    assert steps == list(range(1, 17))


def assert_same_model(*paths: Path) -> None:
    left, right = map(fcn.load, paths)
    assert left.facts["scores"] == right.facts["scores"]
    tensors, others = left.net.state_dict(), right.net.state_dict()
    assert tensors.keys() == others.keys()
    assert all(tensors[name].equal(others[name]) for name in tensors)


def test_the_best_model_is_kept_beside_the_last(tmp_path: Path) -> None:
    """With a learning rate that spoils what it has learnt."""
    config = settings(epochs=5, recipe="reference", learning_rate=0.03)
    summary = train(dataset(tmp_path), str(tmp_path / "run"), config)
    rows = map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines())
    figures = [row["mean_iu"] for row in rows if "mean_iu" in row]
    best = fcn.load(tmp_path / "run" / "best.safetensors")
    last = fcn.load(tmp_path / "run" / "model.safetensors")
    assert summary.best_url == str(tmp_path / "run" / "best.safetensors")
    assert best.facts["scores"]["mean_iu"] == max(figures)
    assert best.facts["scores"]["epoch"] == 1 + figures.index(max(figures))
    assert last.facts["scores"]["mean_iu"] == figures[-1] == summary.mean_iu


def test_several_processes_train_as_one_task_and_score_as_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their log and progress are the run's; every val image counts once, an odd number of them."""
    url = dataset(tmp_path)
    config = settings(num_processes=2, batch_size=3)
    state = train(url, str(tmp_path / "run"), config, return_state=True)
    summary = state.result()
    rows = [
        json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ]
    evaluations = [row for row in rows if "mean_iu" in row]
    assert [row["epoch"] for row in evaluations] == [1, 2]
    assert evaluations[-1]["mean_iu"] == summary.mean_iu  # which one process found
    assert evaluations[-1]["pixel_accuracy"] == summary.pixel_accuracy
    assert sum(row["step"] for row in rows if "loss" in row) == 1 + 2 + 3 + 4 + 5 + 6
    with get_client(sync_client=True) as client:
        run_id = state.state_details.flow_run_id
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run_id]),
                type=ArtifactFilterType(any_=["progress"]),
            )
        )
    lines = [log.message for log in caplog.records if log.name == "prefect.task_runs"]
    assert "training in 2 processes, through torchrun" in lines
    assert sum("mean IU" in line and "on 3 images of val" in line for line in lines) == 2
    (progress,) = (one for one in artifacts if one.key == "train-progress")
    assert progress.data == 100
    assert "16 of 16 images" in progress.description


def test_stages_follow_one_another_and_are_resumed_where_they_stopped(tmp_path: Path) -> None:
    url = dataset(tmp_path)
    config = settings(epochs=1)
    summaries = train_staged(url, str(tmp_path / "whole"), config)
    assert list(summaries) == ["16s", "8s"]
    assert summaries["8s"].model_url == str(tmp_path / "whole" / "8s" / "model.safetensors")
    peaks = [
        json.loads((tmp_path / "whole" / name / "metrics.jsonl").read_text().splitlines()[0])
        for name in summaries
    ]
    ratio = peaks[1]["learning_rate"] / peaks[0]["learning_rate"]
    assert ratio == pytest.approx(0.3)

    (first, _) = plan_stages(str(tmp_path / "stopped"), config)
    train(url, first.run_url, first.config)
    model = tmp_path / "stopped" / "16s" / "model.safetensors"
    before = model.stat().st_mtime_ns
    train_staged(url, str(tmp_path / "stopped"), config)
    assert model.stat().st_mtime_ns == before
    for name in ("16s", "8s"):
        assert_same_model(
            tmp_path / "whole" / name / "model.safetensors",
            tmp_path / "stopped" / name / "model.safetensors",
        )


def test_training_and_evaluation_on_s3(s3: Any) -> None:
    bucket = s3.new_bucket()
    make_dataset(f"{bucket}/set")
    summary = train(f"{bucket}/set", f"{bucket}/run", settings(epochs=1))
    assert summary.model_url == f"{bucket}/run/model.safetensors"
    scores = evaluate(f"{bucket}/set", summary.model_url, f"{bucket}/report")
    assert scores.mean_iu == summary.mean_iu
    assert scores.num_images == 3


def test_the_ui_shows_figures_and_pictures(trained: Trained) -> None:
    url, folder, state = trained
    with get_client(sync_client=True) as client:
        run = client.read_flow_run(state.state_details.flow_run_id)
        assert run.name == f"{url} -> {folder}"
        artifacts = client.read_artifacts(
            artifact_filter=ArtifactFilter(
                flow_run_id=ArtifactFilterFlowRunId(any_=[run.id]),
                type=ArtifactFilterType(any_=["markdown", "table"]),
            )
        )
    found = {artifact.key: artifact.data for artifact in artifacts}
    assert found.keys() == {"evaluate-report", "evaluate-classes", "evaluate-hardest"}
    assert "data:image/" in found["evaluate-report"]
    assert "square" in found["evaluate-classes"]


def test_a_dataset_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=f"no dataset at {tmp_path}/nothing"):
        train(str(tmp_path / "nothing"), str(tmp_path / "run"), settings())


def test_a_split_that_is_not_there_is_named(tmp_path: Path) -> None:
    url = dataset(tmp_path)
    with pytest.raises(DatasetError, match=r"no split 'test' .* it has train, val"):
        evaluate(url, str(tmp_path / "m"), str(tmp_path / "report"), split="test")
    assert not (tmp_path / "report").exists()


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    net = fcn.FCN("squeezenet1_1", 3)
    other = fcn.Model(net, fcn.Classes.named(("cat", "dog", "cow")), TORCHVISION)
    fcn.save(other, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=r"has 3 classes \(cat, dog, cow, …\).* 2 \(ground"):
        evaluate(dataset(tmp_path), str(tmp_path / "other.safetensors"), str(tmp_path / "report"))


def test_a_corrupt_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: not a readable safetensors"):
        evaluate(dataset(tmp_path), str(tmp_path / "bad.safetensors"), str(tmp_path / "report"))


def test_a_model_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"none\.safetensors"):
        evaluate(dataset(tmp_path), str(tmp_path / "none.safetensors"), str(tmp_path / "report"))
    assert not (tmp_path / "report").exists()


def test_credentials_in_a_report_url_are_refused_before_scoring(tmp_path: Path) -> None:
    make_dataset(str(tmp_path / "set"))
    url = "https://user:hush@host/report?token=hush"
    with pytest.raises(StoreError, match="https://host/report was given with") as caught:
        evaluate(str(tmp_path / "set"), str(tmp_path / "no model"), url)
    assert "hush" not in str(caught.value)


def test_an_unwritable_run_url_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="file"):
        train(dataset(tmp_path), str(tmp_path / "file" / "run"), settings())
