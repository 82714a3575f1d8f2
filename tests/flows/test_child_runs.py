"""Child runs on a work pool: the same bytes, no more at once than asked, failures seen."""

import _thread
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import get_current_settings
from prefect.states import Cancelled
from prefect.utilities.callables import parameter_schema

from flows.predict import predict
from flows.predict_partition import predict_partition
from tasks import child_runs, fan_out
from tasks.fan_out import FanOutError, Partition
from tasks.plan import plan_run
from tasks.predict import PredictConfig, PredictError
from tests.flows.spread import make_given, objects

pytestmark = pytest.mark.usefixtures("prefect_server")

ROOT = Path(__file__).resolve().parents[2]
HERE = PredictConfig(
    backend="torch", images_per_shard=2, max_failed=0.2, network_cores=2, shards_per_partition=4
)


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URLs of thirteen images, one of them large, and a bad one, and of a model."""
    return make_given(tmp_path_factory.mktemp("given"))


@pytest.fixture(autouse=True)
def _fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_runs, "POLL_PAUSE", 0.2)
    monkeypatch.setattr(child_runs, "FIRST_TOLD", 0.0)


def deployed(name: str) -> PredictConfig:
    """Settings for child runs of a new deployment on a process pool of the same name."""
    with get_client(sync_client=True) as client:
        client.create_work_pool(WorkPoolCreate(name=name, type="process"))
        client.create_deployment(
            flow_id=client.create_flow(predict_partition),
            name=name,
            work_pool_name=name,
            entrypoint="flows.predict_partition.predict_partition",
            parameter_openapi_schema=parameter_schema(predict_partition).model_dump(),
            pull_steps=[],
        )
    update = {"fan_out": "work-pool", "deployment": f"predict-partition/{name}"}
    return HERE.model_copy(update=update)


@pytest.fixture(scope="module")
def unworked(prefect_server: None) -> PredictConfig:
    """Settings for child runs on a pool that no worker polls."""
    return deployed("no-worker")


@pytest.fixture(scope="module")
def worked(prefect_server: None) -> Iterator[PredictConfig]:
    """Settings for child runs on a pool with a worker."""
    config = deployed("with-worker")
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", "with-worker"]
    # Ten seconds by default: each child would wait for the worker to look.
    often = {"PREFECT_WORKER_QUERY_SECONDS": "1"}
    worker = subprocess.Popen(command, cwd=ROOT, env=environment() | often)
    yield config
    worker.terminate()
    try:
        worker.wait(30)
    except subprocess.TimeoutExpired:  # Prefect's worker where SIGINT is ignored
        worker.kill()


def environment() -> dict[str, str]:
    """That of a process that knows this server and this code."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return os.environ | settings | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def children(config: PredictConfig, output: str) -> list[FlowRun]:
    """The child runs for an output, in the order of their partitions."""
    name = DeploymentFilterName(any_=[config.deployment.partition("/")[2]])
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(deployment_filter=DeploymentFilter(name=name))
    mine = [child for child in found if child.parameters["output_url"] == output]
    return sorted(mine, key=lambda child: (child.parameters["first_shard"], child.created))


def when(is_so: Callable[[], Any], act: Callable[[], Any]) -> threading.Thread:
    """Does something beside the test, as soon as something is so."""

    def watch() -> None:
        while not is_so():
            time.sleep(0.1)
        act()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


@pytest.mark.slow
def test_parent_is_killed_and_the_next_one_finds_its_child(
    given: tuple[str, str],
    worked: PredictConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output, reference = str(tmp_path / "out"), str(tmp_path / "here")
    config = worked.model_copy(update={"partitions_at_once": 1})
    names = ("collection-url", "model-url", "output-url")
    urls = [f"--{name}={url}" for name, url in zip(names, (*given, output), strict=True)]
    changed = config.model_dump(exclude_defaults=True)
    options = [f"--config.{name}={value}" for name, value in changed.items()]
    command = [sys.executable, "-m", "flows", "predict", *urls, *options]
    with subprocess.Popen(command, cwd=ROOT, env=environment()) as parent:
        while parent.poll() is None and not children(config, output):
            time.sleep(0.1)
        parent.kill()
    assert parent.returncode == -signal.SIGKILL

    with caplog.at_level(logging.INFO):
        summary = predict(*given, output, config)

    assert "shards-00000-00003: child run shards-00000-00003" in caplog.text
    assert "is at it already" in caplog.text
    predict(*given, reference, HERE)
    assert objects(output) == objects(reference)
    assert (summary.rows, summary.segmented, summary.failed) == (14, 14, 1)
    assert summary.stages["network"] > 0
    assert len(summary.slow_images) == len(summary.weak_spots) == 10
    first, second = children(config, output)  # of two parents, and never two at once
    assert first.name == f"shards-00000-00003 -> {output}"
    assert (second.parameters["first_shard"], second.parameters["last_shard"]) == (4, 6)
    assert first.end_time is not None
    assert second.created is not None
    assert first.end_time <= second.created


@pytest.mark.slow
def test_failed_child_is_named_and_the_next_call_starts_another(
    given: tuple[str, str], worked: PredictConfig, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    config = worked.model_copy(update={"shards_per_partition": 7})
    obstacle = tmp_path / "out" / "parts" / "run=00000"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder must be")
    with pytest.raises(
        PredictError,
        match=r"1 of 1 partitions failed: shards-00000-00006: child run shards-00000-00006 "
        r"-> .*/out \(http:.*\) failed: PredictError: [34] of 7 shards failed; first: shard-00000: "
        r"StoreError: .* a file lies in the way. Finished parts are kept; rerun to do the rest$",
    ):
        predict(*given, output, config)
    obstacle.unlink()

    assert predict(*given, output, config).segmented == 14
    assert [child.state_name for child in children(config, output)] == ["Failed", "Completed"]


def test_deployment_that_is_not_there_is_told_before_planning(
    given: tuple[str, str], tmp_path: Path
) -> None:
    config = PredictConfig(fan_out="work-pool", deployment="predict-partition/typo")
    with pytest.raises(
        FanOutError,
        match=r"no deployment 'predict-partition/typo' on .*; `python deployments/set_up\.py` reg",
    ):
        predict(*given, str(tmp_path / "out"), config)
    assert not (tmp_path / "out").exists()


def test_interrupted_parent_says_what_it_waited_for_and_cancels_its_children(
    given: tuple[str, str],
    unworked: PredictConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = str(tmp_path / "out")
    text = "waiting for a worker on pool 'no-worker': 2 child runs are scheduled, and no worker"
    # A shell that starts the tests in the background has SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    thread = when(lambda: text in caplog.text, _thread.interrupt_main)
    try:
        with caplog.at_level(logging.INFO), pytest.raises(KeyboardInterrupt):
            predict(*given, output, unworked)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert "prefect worker start --pool no-worker" in caplog.text
    found = children(unworked, output)
    assert [child.state_name for child in found] == ["Cancelled", "Cancelled"]


def test_child_of_a_parent_that_is_gone_is_found_and_its_end_is_seen(
    given: tuple[str, str],
    unworked: PredictConfig,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    output = str(tmp_path / "out")
    config = unworked.model_copy(update={"shards_per_partition": 7})
    plan = plan_run(*given, output, config)
    manifest, model_url, settings = fan_out.for_others(plan.manifest, given[1], config)
    [partition] = fan_out.partitions(plan, range(7), config)
    parameters = {
        "output_url": output,
        "model_url": model_url,
        "run": 0,
        "first_shard": 0,
        "last_shard": 6,
        "config": settings.model_dump(mode="json"),
    }
    key = f"{child_runs.child_key(manifest, partition)}-0"
    child = run_deployment(config.deployment, parameters=parameters, timeout=0, idempotency_key=key)

    def cancel() -> None:
        with get_client(sync_client=True) as client:
            client.set_flow_run_state(child.id, Cancelled(message="out of credit"))

    thread = when(lambda: "is at it already" in caplog.text, cancel)
    with (
        caplog.at_level(logging.INFO),
        pytest.raises(PredictError, match=rf"child run {child.name} .* cancelled: out of credit"),
    ):
        predict(*given, output, config)
    thread.join()
    assert len(children(config, output)) == 1


def test_partition_of_another_run_is_refused(given: tuple[str, str], tmp_path: Path) -> None:
    output = str(tmp_path / "out")
    plan_run(*given, output, HERE)
    with pytest.raises(PredictError, match="shards 5 to 7 of run 00000, which has 7: 0 to 6"):
        predict_partition(output, given[1], 0, 5, 7, HERE)
    other = HERE.model_copy(update={"lenient": True})
    with pytest.raises(PredictError, match="planned with other settings"):
        predict_partition(output, given[1], 0, 0, 6, other)


def test_keys_of_partitions_differ(given: tuple[str, str], tmp_path: Path) -> None:
    plan = plan_run(*given, str(tmp_path / "out"), HERE)
    first, second = (Partition(first=0, last=last, missing=(0,)) for last in (3, 4))
    keys = {child_runs.child_key(plan.manifest, one) for one in (first, second)}
    assert len(keys) == 2
