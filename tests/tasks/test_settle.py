import pytest
from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.states import Completed, Crashed, Failed, Pending, Running

from tasks.settle import settle


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
        for state in (Running(), Running(), Pending(), Completed(), Failed()):
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
    "Completed -> Completed",
    "Failed -> Failed",
    "Pending -> Crashed",
    "Running -> Crashed",
    "Running -> Crashed",
]


def test_the_next_start_marks_what_was_left_running(left_behind):
    left_behind.run_count = 2
    settle(night, left_behind, Running())
    assert task_states(left_behind) == SETTLED


def test_so_does_a_crash_that_a_worker_reports(left_behind):
    settle(night, left_behind, Crashed())
    assert task_states(left_behind) == SETTLED


def test_a_first_start_asks_for_nothing(left_behind):
    left_behind.run_count = 1
    settle(night, left_behind, Running())
    assert "Running -> Running" in task_states(left_behind)
