"""What every flow does first: refuse credentials, and listen to the plain modules.

Prefect stores parameters, log lines and tracebacks, and shows them to whoever may see the run.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from prefect.context import get_run_context
from prefect.exceptions import MissingContextError
from prefect.runtime import flow_run
from pydantic import BaseModel

from tasks import stores
from tasks.cancel_watch import watch_for_cancel
from tasks.log_records import message_of
from tasks.server_wait import tell_waiting

PLAIN_LOGGERS = ("fcn", "tasks")
"""Loggers of the modules that know nothing of Prefect."""

_PREFECT_LOGGERS = ("prefect.flow_runs", "prefect.task_runs", "prefect.extra", "")
_FORMATTER = logging.Formatter()
_begun = ""  # ID of the flow run that this process began last


def start_run(*parameters: Any) -> None:
    """Begin a flow run that was given these parameters.

    From now on a wait for the Prefect server is told; a cancel ends the run also where its worker
    does not hear of it; what modules of `fcn` and `tasks` log, in whichever thread, are lines of
    this run; and no line, nor a traceback below it, shows the credentials of a URL.

    Raises:
        StoreError: a URL among the parameters, or in a field of one, holds a user name, a
            password or a query string.
    """
    global _begun  # noqa: PLW0603 - threads of plain modules know of no run
    _begun = flow_run.id or ""
    _listen()
    tell_waiting()
    watch_for_cancel()
    stores.require_no_credentials(*texts_of(parameters))


def texts_of(parameter: object) -> Iterator[str]:
    """Every text in a parameter: itself, or those in its fields and members."""
    if isinstance(parameter, BaseModel):
        parameter = dict(parameter)
    if isinstance(parameter, str):
        yield parameter
    elif isinstance(parameter, Mapping):
        yield from texts_of(parameter.values())
    elif isinstance(parameter, Iterable):
        for member in parameter:
            yield from texts_of(member)


def _listen() -> None:
    for name in _PREFECT_LOGGERS:
        for handler in logging.getLogger(name).handlers:
            handler.addFilter(_without_credentials)  # once, however often it is added
            handler.addFilter(_of_this_run)
    extra = logging.getLogger("prefect.extra")
    for logger in map(logging.getLogger, PLAIN_LOGGERS):
        if logger.level == logging.NOTSET:
            logger.setLevel(extra.getEffectiveLevel())
        for handler in extra.handlers:
            if handler not in logging.getLogger().handlers:  # which hear the line anyway
                logger.addHandler(handler)  # once, also where PREFECT_LOGGING_EXTRA_LOGGERS did it


def _without_credentials(record: logging.LogRecord) -> bool:
    record.msg, record.args = stores.redact_text(message_of(record)), ()
    if record.exc_info and record.exc_info[1]:
        text = record.exc_text or _FORMATTER.formatException(record.exc_info)
        record.exc_text = stores.redact_text(text)
    return True


def _of_this_run(record: logging.LogRecord) -> bool:
    if record.name.partition(".")[0] in PLAIN_LOGGERS and _begun:
        try:
            get_run_context()
        except MissingContextError:
            record.flow_run_id = _begun
    return True
