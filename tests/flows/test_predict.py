"""The flow segments a collection, goes on where it was cut off, and says what went wrong."""

import json
import logging
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    ArtifactFilter,
    ArtifactFilterFlowRunId,
    FlowRunFilter,
    FlowRunFilterId,
)
from prefect.client.schemas.objects import Artifact, TaskRun
from prefect.exceptions import ParameterTypeError

from fcn.errors import CheckpointError
from flows.predict import predict
from tasks import fan_out, parts, reading, stores
from tasks.plan import plan_run
from tasks.predict import PredictConfig, PredictSummary
from tasks.segment import PredictError, RunInputs, segment_partition
from tasks.shards import write_part
from tasks.stores import StoreError
from tests.tasks.pictures import encoded, pixels, put, save_model

pytestmark = pytest.mark.usefixtures("prefect_server")

CONFIG = PredictConfig(images_per_shard=4, max_failed=0.2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URL of a model file."""
    return save_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture
def collection(tmp_path: Path, rng: np.random.Generator) -> str:
    """Nine images and a bad one."""
    url = str(tmp_path / "in")
    put(url, {f"{index}.png": encoded(pixels(rng, 30 + index % 2, 40)) for index in range(9)})
    put(url, {"bad|name.jpg": b"no image"})
    return url


@pytest.fixture
def output(tmp_path: Path) -> str:
    return str(tmp_path / "out")


def run(*given: Any) -> tuple[PredictSummary, dict[str, Artifact]]:
    """The summary of a flow run, and its artifacts by key."""
    state = predict(*given, return_state=True)
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilterFlowRunId(any_=[state.state_details.flow_run_id])
        artifacts = client.read_artifacts(artifact_filter=ArtifactFilter(flow_run_id=wanted))
    return state.result(), {artifact.key or "": artifact for artifact in artifacts}


def task_runs(flow_run_id: Any, count: int) -> list[TaskRun]:
    """The task runs of a flow run, once the server has recorded so many as finished."""
    wanted = FlowRunFilter(id=FlowRunFilterId(any_=[flow_run_id]))
    deadline = time.monotonic() + 60
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=wanted)
            if sum(one.end_time is not None for one in found) >= count:
                return found
            assert time.monotonic() < deadline, f"{len(found)} task runs recorded, not {count}"
            time.sleep(0.2)


def test_every_image_gets_one_row_and_the_page_says_what_came_out(
    collection: str, model: str, output: str
) -> None:
    summary, artifacts = run(collection, model, output, CONFIG)

    assert (summary.rows, summary.ok, summary.partial, summary.failed) == (10, 9, 0, 1)
    assert summary.segmented == 10
    assert summary.stages["network"] > 0
    index = json.loads(Path(output, "_index.json").read_text("utf-8"))
    assert (index["rows"], index["counts"]["failed"], len(index["parts"])) == (10, 1, 3)
    assert parts.read(output).count_rows() == 10

    page = str(artifacts["predict-summary"].data)
    assert page.count("data:image/jpeg;base64,") == 6
    assert "UnsupportedImage" in page
    assert r"bad\|name.jpg" in page
    table = json.loads(str(artifacts["predict-counts"].data))
    assert table[0] == {"status": "ok", "images": "9", "share": "90.00 %"}
    assert artifacts["predict-progress"].data == 100
    assert "10 of 10 images" in str(artifacts["predict-progress"].description)


def test_runs_are_named_in_the_ui(collection: str, model: str, output: str) -> None:
    state = predict(collection, model, output, CONFIG, return_state=True)
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(state.state_details.flow_run_id)
    names = {one.name for one in task_runs(flow_run.id, 5)}
    assert flow_run.name == f"{collection} -> {output}"
    assert names == {
        "plan the run",
        *(f"shard-{number:05d}" for number in range(3)),
        "publish the index",
    }


def test_second_run_does_nothing_and_says_so(
    collection: str, model: str, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    first = predict(collection, model, output, CONFIG)
    caplog.clear()
    before = {path: path.stat().st_mtime_ns for path in Path(output).rglob("*") if path.is_file()}
    with caplog.at_level(logging.INFO):
        second = predict(collection, model, output, CONFIG)
    assert "nothing to do: every image is done" in caplog.text
    assert (second.segmented, second.rows, second.failed) == (0, first.rows, first.failed)
    after = {path: path.stat().st_mtime_ns for path in Path(output).rglob("*") if path.is_file()}
    assert after == before


def test_rerun_does_only_the_missing_shard(
    collection: str, model: str, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    predict(collection, model, output, CONFIG)
    part = Path(parts.part_url(output, 0, 1))
    data = part.read_bytes()
    part.unlink()
    Path(output, "_index.json").unlink()
    caplog.clear()

    with caplog.at_level(logging.INFO):
        summary = predict(collection, model, output, CONFIG)

    assert summary.segmented == 4
    assert part.read_bytes() == data
    [line] = [line for line in caplog.messages if line.startswith("shard-")]
    assert line.startswith("shard-00001: 4 images in")
    assert parts.is_indexed(output)


def test_too_many_failures_end_the_run_failed_with_everything_kept(
    collection: str, model: str, output: str
) -> None:
    strict = CONFIG.model_copy(update={"max_failed": 0.01})
    with pytest.raises(
        PredictError,
        match=r"1 of 10 images failed \(10 %\), above max_failed=1 %; first: bad\|name\.jpg: "
        r"UnsupportedImage: .*Parts and index are kept",
    ):
        predict(collection, model, output, strict)
    assert parts.is_indexed(output)
    assert parts.read(output).count_rows() == 10
    with pytest.raises(PredictError, match="1 of 10 images failed"):  # the same the next time
        predict(collection, model, output, strict)


def test_mask_that_cannot_be_named_is_a_failed_row(
    collection: str, model: str, output: str, rng: np.random.Generator
) -> None:
    name = "4" + "x" * 247 + ".png"  # its mask would need a name of 256 bytes
    put(collection, {name: encoded(pixels(rng))})
    config = CONFIG.model_copy(
        update={"sinks": ("parquet", "png"), "images_per_shard": 3, "max_failed": 1.0}
    )
    summary = predict(collection, model, output, config)
    failures = parts.failures(output, 0, 10)
    assert {row["key"]: row["error_class"] for row in failures}[name] == "MaskNotSaved"
    assert summary.rows == summary.ok + summary.failed
    assert parts.listed(output) == {0: [0, 1, 2, 3]}


def test_shards_that_fail_are_told_and_no_index_is_written(
    collection: str, model: str, output: str
) -> None:
    Path(output, "parts").mkdir(parents=True)
    Path(output, "parts", "run=00000").write_text("a file where a folder must be")
    with pytest.raises(PredictError, match=r"3 of 3 shards failed; first: shard-00000: StoreError"):
        predict(collection, model, output, CONFIG)
    assert not stores.exists(f"{output}/_index.json")


def test_part_that_is_no_part_is_noticed_before_the_index(
    collection: str, model: str, output: str
) -> None:
    Path(output, "parts", "run=00000", "part-00001.parquet", "folder").mkdir(parents=True)
    with pytest.raises(PredictError, match=r"1 of 3 parts of run 00000 are not there: part-00001"):
        predict(collection, model, output, CONFIG)
    assert not stores.exists(f"{output}/_index.json")


class _Recovering(BaseHTTPRequestHandler):
    """A site with one image, which it gives at the ninth time of asking."""

    image = b""
    asked = 0

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.image)))
        self.end_headers()

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(503 if self.asked < 9 else 200)
        self.send_header("Content-Length", str(len(self.image)))
        self.end_headers()
        self.wfile.write(self.image)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.mark.slow
def test_shard_is_tried_again_when_its_store_was_out(
    model: str,
    output: str,
    rng: np.random.Generator,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(reading, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(segment_partition, "retry_delay_seconds", [0.1] * 4)
    monkeypatch.setattr(_Recovering, "image", encoded(pixels(rng)))
    with HTTPServer(("127.0.0.1", 0), _Recovering) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/x.png"
        summary, artifacts = run(url, model, output, PredictConfig())
        site.shutdown()

    assert (summary.rows, summary.ok) == (1, 1)
    # four attempts of two task runs, the one that went well, and one for the page's picture
    assert _Recovering.asked == 10
    assert "503" in caplog.text
    assert "1 of 1 images" in str(artifacts["predict-progress"].description)


def test_bad_input_is_told_and_leaves_nothing(
    collection: str, model: str, output: str, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.safetensors").write_bytes(stores.read_bytes(model)[:1000])
    for given, error, text in [
        ((f"{tmp_path}/typo", model, output), StoreError, "typo: nothing there"),
        ((f"{tmp_path}/empty", model, output), StoreError, "no images at"),
        ((collection, f"{tmp_path}/no.safetensors", output), StoreError, "nothing there"),
        ((collection, f"{tmp_path}/bad.safetensors", output), CheckpointError, "bad.safetensors"),
        ((collection, model, "/proc/out"), StoreError, "cannot write /proc/out"),
    ]:
        with pytest.raises(error, match=text):
            predict(*given)
    assert not Path(output).exists()


def test_unknown_option_is_refused_before_the_run(collection: str, model: str, output: str) -> None:
    with pytest.raises(ParameterTypeError, match="no_such_option"):
        predict(collection, model, output, config={"no_such_option": 1})
    with pytest.raises(ParameterTypeError, match="images_per_shard"):
        predict(collection, model, output, config={"images_per_shard": 0})


def test_many_shards_are_never_all_submitted_at_once(
    tmp_path: Path, model: str, output: str, rng: np.random.Generator
) -> None:
    put(str(tmp_path / "in"), {f"{index:02}.png": encoded(pixels(rng)) for index in range(12)})
    config = PredictConfig(images_per_shard=1, concurrency=3)
    state = predict(str(tmp_path / "in"), model, output, config, return_state=True)
    assert state.result().ok == 12
    found = task_runs(state.state_details.flow_run_id, 14)
    runs = [one for one in found if one.name.startswith("shard-")]
    moments = [(one.start_time, 1) for one in runs] + [(one.end_time, -1) for one in runs]
    at_once = np.cumsum([step for _, step in sorted(moments)])
    assert len(runs) == 12
    assert at_once.max() <= 3


def test_more_shards_than_task_runs_share_them(
    collection: str, model: str, output: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fan_out, "MAX_PARTITIONS", 2)
    state = predict(collection, model, output, CONFIG, return_state=True)
    assert state.result().segmented == 10
    names = {one.name for one in task_runs(state.state_details.flow_run_id, 4)}
    assert names == {
        *("plan the run", "publish the index"),
        *("shards-00000-00001", "shard-00002"),
    }


def test_shard_that_another_run_has_put_meanwhile_is_left_out(
    collection: str, model: str, output: str, caplog: pytest.LogCaptureFixture
) -> None:
    manifest = plan_run(collection, model, output, CONFIG).manifest
    write_part(manifest, 1, model, CONFIG)
    with caplog.at_level(logging.INFO):
        reports = segment_partition(RunInputs(manifest, model, CONFIG, at_once=2), (0, 1, 2), None)
    assert [report.part.number for report in reports] == [0, 2]
    assert "shard-00001: has its part already" in caplog.text
