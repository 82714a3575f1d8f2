"""Task runs of a process that is gone: the server would show them as running for ever."""

from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    TaskRunFilter,
    TaskRunFilterState,
    TaskRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, TaskRun
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.states import Crashed

__all__ = ["settle"]

PAGE = 200
"""Task runs that a server gives at once."""


def settle(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Mark as crashed what earlier processes of a run left running: a hook for its next start.

    A hook for ``on_running`` and, where the worker outlives a killed process and runs it,
    ``on_crashed``.
    """
    if state.is_running() and flow_run.run_count <= 1:
        return
    gone: State[Any] = Crashed(message="its process is gone")
    with get_client(sync_client=True) as client:
        left = _left_running(client, flow_run)
        for task_run in left:
            client.set_task_run_state(task_run.id, gone, force=True)
    if left:
        flow_run_logger(flow_run, flow).info(
            "%d task runs of a process that is gone are marked crashed", len(left)
        )


def _left_running(client: SyncPrefectClient, flow_run: FlowRun) -> list[TaskRun]:
    unfinished = TaskRunFilterStateType(any_=[StateType.RUNNING, StateType.PENDING])
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
