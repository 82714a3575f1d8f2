"""The hooks of every flow, as arguments of ``@flow``.

::

    @flow(name="train", **HOOKS)
"""

from typing import Any, TypedDict

from prefect.flows import FlowStateHook

from tasks.notify import notify
from tasks.settle import settle

__all__ = ["HOOKS"]


class Hooks(TypedDict):
    """What is called when a run enters a state; `FlowStateHook` is Prefect's signature."""

    on_running: list[FlowStateHook[..., Any]]
    on_completion: list[FlowStateHook[..., Any]]
    on_failure: list[FlowStateHook[..., Any]]
    on_crashed: list[FlowStateHook[..., Any]]
    on_cancellation: list[FlowStateHook[..., Any]]


HOOKS: Hooks = {
    "on_running": [settle],
    "on_completion": [notify],
    "on_failure": [notify],
    "on_crashed": [settle, notify],
    "on_cancellation": [settle],  # the worker runs it, when the processes are gone
}
