"""A training over two processes that is cancelled, on a real worker."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from safetensors.numpy import load_file

from tests.e2e.machine import Machine, alive, children, kill, machine, wait_for
from tests.e2e.runs import states, task_runs
from tests.tasks.labelled import make_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1200)]

CONFIG = {
    "backbone": "squeezenet1_1",
    "init": "none",
    "batch_size": 4,
    "crop_size": [32, 32],
    "num_workers": 1,
    "num_processes": 2,
    "device": "cpu",
}

EPOCHS = 60


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A server, a worker, a dataset."""
    home = tmp_path_factory.mktemp("cancel") / "home"
    with machine(home) as made:
        made.server = made.start_server()
        made.set_up()
        made.worker = made.start_worker()
        make_dataset(f"{home.parent}/set")
        yield made


@pytest.fixture(scope="module")
def undisturbed(made: Machine):
    """The weights of a training that nobody disturbed."""
    complete(made, "undisturbed")
    return weights(made, "undisturbed")


def start(made: Machine, name: str, epochs: int) -> FlowRun:
    """A run of the deployment."""
    with get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name("train/train")
        urls = {"dataset_url": f"{made.home.parent}/set", "run_url": f"{made.home.parent}/{name}"}
        return client.create_flow_run_from_deployment(
            deployment.id, parameters=urls | {"config": CONFIG | {"epochs": epochs}}
        )


def complete(made: Machine, name: str) -> FlowRun:
    """A run to its end."""
    run = start(made, name, EPOCHS)
    reach(run, "Completed", 300)
    return run


def reach(run: FlowRun, state: str, seconds: float) -> None:
    """Wait until a run has been in a state."""

    def there() -> Any:
        with get_client(sync_client=True) as client:
            return states(client, run.id).get(state)

    wait_for(f"{state} run", there, seconds)


def weights(made: Machine, name: str) -> dict[str, Any]:
    """Of the trained model."""
    return load_file(made.home.parent / name / "model.safetensors")


def nothing() -> None:
    """What is done where nothing is to be done."""


def cancelled_midway(
    made: Machine,
    name: str,
    epochs: int = EPOCHS,
    before: Callable[[], None] = nothing,
    then: Callable[[], None] = nothing,
) -> FlowRun:
    """A run that is cancelled by the API after its first saved state, and has ended."""
    idle = set(children(made.worker.pid))
    run = start(made, name, epochs)
    state = made.home.parent / name / "state"
    wait_for("saved state", lambda: state.is_dir() and any(state.iterdir()), 180)
    own = set(children(made.worker.pid)) - idle
    assert len([pid for pid in own if "training_rank" in command(pid)]) >= 2
    assert len(own) >= 6  # the run, torchrun, two ranks, and the processes that decode for them
    before()
    with get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, Cancelling())
    then()
    reach(run, "Cancelled", 120)
    wait_for("end of the processes", lambda: not any(map(alive, own)), 40)
    assert [command(pid) for pid in own if alive(pid)] == []
    assert not (made.home.parent / name / "model.safetensors").exists()
    with get_client(sync_client=True) as client:
        wait_for("end of every task run", lambda: not unfinished(client, run), 30)
        assert client.read_flow_run(run.id).state.is_cancelled()
    return run


def unfinished(client: Any, run: FlowRun) -> list[str]:
    """Task runs that are marked as at work, or about to be."""
    final = {"Completed", "Failed", "Crashed", "Cancelled"}
    return [name for name, state in task_runs(client, run.id) if state not in final]


def command(pid: int) -> str:
    """What a process was started as."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    except FileNotFoundError:
        return ""


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    """The same weights, bit by bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not np.array_equal(one[name], other[name])] == []


def test_a_cancelled_training_leaves_no_process_and_goes_on_when_run_again(made, undisturbed):
    cancelled_midway(made, "cancelled")
    again = complete(made, "cancelled")
    assert "resumed at step" in logged(again)
    assert_equal(weights(made, "cancelled"), undisturbed)


def test_a_cancel_is_carried_out_when_a_server_that_went_away_is_back(made, undisturbed):
    cancelled_midway(made, "away", then=lambda: leave(made, 20))
    complete(made, "away")
    assert_equal(weights(made, "away"), undisturbed)


def test_a_run_that_outlived_its_server_can_be_cancelled(made):
    """Its worker has given up to ask for cancels by then, for good."""
    cancelled_midway(made, "outlived", 10 * EPOCHS, before=lambda: leave(made, 45))


def leave(made: Machine, seconds: float) -> None:
    """The server is killed, and is there again after so many seconds."""
    kill(made.server)
    time.sleep(seconds)
    made.server = made.start_server()


def logged(run: FlowRun) -> str:
    """The log of a run."""
    with get_client(sync_client=True) as client:
        lines = client.read_logs(LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run.id])))
    return "\n".join(line.message for line in lines)
