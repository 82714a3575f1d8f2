"""Ends the process of a cancelled run where no worker does.

A worker hears of a cancel through a websocket and, once that is broken, asks the Prefect server
every ten seconds. In Prefect 3.8 three questions in a row without an answer end the asking for
good: a server that is away for half a minute is enough. A cancel whose event was under way when
the server died is not told again at all. The run would go on, shown as "Cancelling" and after
five minutes as "Cancelled". So a run looks for itself.
"""

import contextvars
import logging
import os
import signal
import threading
import time
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.context import FlowRunContext
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.flows import Flow
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled

from tasks.notify import ENDED_ITSELF, notify
from tasks.urls import redact_text

LOOK = 15.0
"""Seconds between two looks at the run's state."""

PATIENCE = 40.0
"""Seconds that the worker has: it gives a process 30 to end, after it has heard of the cancel."""

GRACE = 30.0
"""Seconds that this process has to end by itself."""

_log = logging.getLogger(__name__)
_watched: set[UUID] = set()


def watch_for_cancel() -> None:
    """From now on watch the run of this process, in a thread. Can be called again.

    A run of no deployment has no worker, and is not watched; nor is a flow within a run, which
    ends with it.
    """
    context = FlowRunContext.get()
    run = context and context.flow_run
    flow = context and context.flow
    if not (run and flow) or run.deployment_id is None or run.id in _watched:
        return
    _watched.add(run.id)
    here = contextvars.copy_context()
    threading.Thread(
        target=here.run, args=(_watch, flow, run), name="cancel-watch", daemon=True
    ).start()


def _watch(flow: Flow[..., Any], run: FlowRun) -> None:
    seen: float | None = None
    told: set[type[Exception]] = set()
    # A client that asks again waits up to two minutes for its turn; here the next look will do.
    once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    with once, get_client(sync_client=True) as client:
        while not (run.state and run.state.is_final()):
            time.sleep(LOOK)
            try:
                if not _is_cancelled(client, run):
                    seen = None
                elif seen is None:
                    seen = time.monotonic()
                elif time.monotonic() - seen >= PATIENCE:
                    _end(client, flow, run)
            except ObjectNotFound:  # somebody has deleted the run
                return
            except Exception as error:  # noqa: BLE001 - whatever it is, the next look may do
                if type(error) not in told:
                    told.add(type(error))
                    _tell(error)


def _tell(error: Exception) -> None:
    """Say that a look failed; with the traceback where neither server nor network explain it.

    A server that is away raises an `httpx.HTTPError` or an `OSError`, a proxy that answers in
    its place a ValueError, or what Prefect makes of it.
    """
    foreseen = (httpx.HTTPError, OSError, ValueError, PrefectException)
    _log.warning(
        "not known whether this run was cancelled (%s: %s); looking again every %.0f s",
        type(error).__name__,
        redact_text(str(error)),
        LOOK,
        exc_info=None if isinstance(error, foreseen) else error,
    )


def _is_cancelled(client: SyncPrefectClient, run: FlowRun) -> bool:
    state = client.read_flow_run(run.id).state
    return state is not None and (state.is_cancelling() or state.is_cancelled())


def _end(client: SyncPrefectClient, flow: Flow[..., Any], run: FlowRun) -> None:
    """Mark the run as cancelled and tell the webhook, then end this process and its own."""
    _log.warning("cancelled, and no worker has ended this run in %.0f s: it ends itself", PATIENCE)
    state: State[Any] = Cancelled(message=ENDED_ITSELF)
    client.set_flow_run_state(run.id, state, force=True)
    # The engine's own object: on SIGTERM it reports a crash of a run that is not final.
    run.state = state
    notify(flow, run, state)  # no hook is called of this end
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)
