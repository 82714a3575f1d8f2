"""The hooks of every flow, as arguments of ``@flow``.

::

    @flow(name="train", **HOOKS)

Prefect logs that a hook begins and that it ended, for each and in every run. Of these hooks it
does not: they have mostly nothing to do, and say themselves what they did.
"""

import logging
import re
from typing import Any, TypedDict

from prefect.flows import FlowStateHook

from tasks.log_records import message_of
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
    "on_cancellation": [settle, notify],  # the worker runs it, when the processes are gone
}

_BEGUN_OR_ENDED = re.compile(
    rf"(Running hook|Hook) '({settle.__name__}|{notify.__name__})' (in response|finished)"
)


def _is_told(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO or not _BEGUN_OR_ENDED.match(message_of(record))


for _name in ("prefect.engine", "prefect.flow_runs"):  # the hooks of a start, and the others
    logging.getLogger(_name).addFilter(_is_told)
