"""Runs of a process that is gone: the server would show them as running for ever."""

from collections import Counter
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterParentFlowRunId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, State, StateType, TaskRun
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Crashed

from tasks.wording import number_of

__all__ = ["settle"]

PAGE = 200
"""Runs that a server gives at once."""

PROCESS_ENDED = "its process ended before its worker said so"
"""Message of a cancelled run that has crashed."""

UNFINISHED = [state for state in StateType if state not in TERMINAL_STATES]


def settle(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mark as crashed what earlier processes of a run left unfinished: a hook.

    For ``on_running``, the next start, and where the worker outlives a killed or cancelled
    process and runs them, ``on_crashed`` and ``on_cancellation``. Flow runs within the run were
    in the same process, and are settled with it; child runs of a deployment have their own, and
    are left alone. A run that crashed while it was being cancelled is cancelled.
    """
    if state.is_running() and flow_run.run_count == 0:  # as it was before this start
        return
    with get_client(sync_client=True) as client:
        settled = _settle(client, flow_run)
        if state.is_crashed() and _was_cancelling(client, flow_run):
            cancelled: State[Any] = Cancelled(message=PROCESS_ENDED)
            client.set_flow_run_state(flow_run.id, cancelled, force=True)
    if settled:
        flow_run_logger(flow_run, flow).info(
            "marked as crashed, of a process that is gone: %s",
            " and ".join(number_of(count, kind) for kind, count in settled.items()),
        )


def _was_cancelling(client: SyncPrefectClient, flow_run: FlowRun) -> bool:
    """Whether somebody had cancelled a run that has crashed now: not to be started again.

    So ends a run whose worker hears of the cancel in the moment in which the server goes away.
    """
    states = sorted(client.read_flow_run_states(flow_run.id), key=lambda state: state.timestamp)
    return any(state.is_cancelling() for state in states[-2:])


def _settle(client: SyncPrefectClient, flow_run: FlowRun) -> Counter[str]:
    """Settle a run and those within it; returns how many runs of each kind were unfinished."""
    gone: State[Any] = Crashed(message="its process is gone")
    settled: Counter[str] = Counter()
    for inner in _inner_runs(client, flow_run):
        settled += _settle(client, inner)
        if inner.state is None or not inner.state.is_final():
            client.set_flow_run_state(inner.id, gone, force=True)
            settled["flow run"] += 1
    left = _unfinished(client, flow_run)
    for task_run in left:
        client.set_task_run_state(task_run.id, gone, force=True)
        settled["task run"] += 1
    return settled


def _inner_runs(client: SyncPrefectClient, flow_run: FlowRun) -> list[FlowRun]:
    """Flow runs that a flow called as a function, at any of its starts."""
    within = FlowRunFilter(parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[flow_run.id]))
    found: list[FlowRun] = []
    while True:
        page = client.read_flow_runs(flow_run_filter=within, limit=PAGE, offset=len(found))
        found += page
        if len(page) < PAGE:
            return [inner for inner in found if inner.deployment_id is None]


def _unfinished(client: SyncPrefectClient, flow_run: FlowRun) -> list[TaskRun]:
    unfinished = TaskRunFilterStateType(any_=UNFINISHED)
    found: list[TaskRun] = []
    while True:
        page = client.read_task_runs(
            flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run.id])),
            task_run_filter=TaskRunFilter(state=TaskRunFilterState(type=unfinished)),
            limit=PAGE,
            offset=len(found),
        )
        found += page
        if len(page) < PAGE:
            return found
