"""What a killed process left, on a real server."""

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelling, Completed, Crashed, Failed, Pending, Running

from tasks.settle import settle
from tests.tasks.settling import outer

ROOT = Path(__file__).resolve().parents[2]


@task
def working() -> None:
    """A task whose process is killed."""


@flow
def night() -> None:
    """A flow whose process is killed."""


@pytest.fixture
def left_behind(prefect_server):
    """A flow run that a killed process left, and the states of its task runs by name."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(night, state=Running())
        for state in (Running(), Running(), Pending(), AwaitingRetry(), Completed(), Failed()):
            client.create_task_run(
                working, run.id, dynamic_key=str(state.id), name=state.name, state=state
            )
    return run


def task_states(run):
    with get_client(sync_client=True) as client:
        found = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[run.id]))
        )
    return sorted(f"{task_run.name} -> {task_run.state_name}" for task_run in found)


SETTLED = [
    "AwaitingRetry -> Crashed",
    "Completed -> Completed",
    "Failed -> Failed",
    "Pending -> Crashed",
    "Running -> Crashed",
    "Running -> Crashed",
]


@pytest.mark.parametrize("state", [Crashed(), Cancelling()])
def test_an_end_that_a_worker_reports_settles(left_behind, state, caplog):
    settle(night, left_behind, state)
    assert task_states(left_behind) == SETTLED
    assert "marked as crashed, of a process that is gone: 4 task runs" in caplog.messages


@pytest.mark.parametrize(("before", "after"), [(Cancelling, "Cancelled"), (Running, "Crashed")])
def test_a_crash_of_a_run_that_was_being_cancelled_is_a_cancel(prefect_server, before, after):
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(night, state=Running())
        client.set_flow_run_state(run.id, before(), force=True)
        client.set_flow_run_state(run.id, Crashed(), force=True)
        settle(night, run, Crashed())
        assert client.read_flow_run(run.id).state_name == after


def test_of_runs_within_a_run_it_says_so_too(prefect_server, caplog):
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(night, state=Running())
        called = client.create_task_run(
            working, run.id, dynamic_key="0", name="night", state=Completed()
        )
        client.create_flow_run(night, parent_task_run_id=called.id, state=Running())
    settle(night, run, Crashed())
    assert "marked as crashed, of a process that is gone: 1 flow run" in caplog.messages


def test_a_first_start_asks_for_nothing(left_behind):
    left_behind.run_count = 0  # the hook is given the run as it was before
    settle(night, left_behind, Running())
    assert "Running -> Running" in task_states(left_behind)


def test_a_killed_run_that_is_started_again_leaves_nothing_marked_running(prefect_server):
    """Nor does what ran within it, as in a pipeline. Two processes: most of the time is theirs."""
    with get_client(sync_client=True) as client:
        run = client.create_flow_run(outer, parameters={"stay": True}, state=Pending())
    first = started(run, "stay")
    try:
        left = {"work -> Running", "inner -> Running", "try_again -> AwaitingRetry"}
        wait_until(lambda: left <= recorded(run).keys())
    finally:
        first.kill()
        first.wait()
    assert recorded(run)["work -> Running"] == 2
    with get_client(sync_client=True) as client:
        for state in (Crashed(message="no heartbeat"), AwaitingRetry()):
            client.set_flow_run_state(run.id, state, force=True)
    assert started(run).wait(90) == 0

    done = ["work -> Completed"] * 2 + ["inner -> Completed", "try_again -> Completed"]
    wait_until(lambda: not Counter(done) - recorded(run))
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(run.id).run_count == 2
    gone = ["work -> Crashed"] * 2 + ["try_again -> Crashed"]
    within = ["run of inner -> Crashed", "run of inner -> Completed"]
    assert recorded(run) == Counter(done + gone + within)


def started(run, *options):
    """A process that runs the flow run."""
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tasks.settling", str(run.id), *options],
        cwd=ROOT,
        env=os.environ | settings,
    )


def wait_until(there, seconds=60):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.3)


def recorded(run):
    """The runs that the server knows within a run, with their states."""
    with get_client(sync_client=True) as client:
        mine = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run.id]}})
        inner = client.read_flow_runs(flow_run_filter=mine)
        ids = FlowRunFilter(id=FlowRunFilterId(any_=[run.id, *(child.id for child in inner)]))
        tasks = client.read_task_runs(flow_run_filter=ids)
    names = [f"run of inner -> {child.state_name}" for child in inner]
    return Counter(
        names + [f"{one.task_key.partition('-')[0]} -> {one.state_name}" for one in tasks]
    )
