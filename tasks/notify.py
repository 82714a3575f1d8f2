"""Tells a webhook how a run has ended.

`notify` is a hook of every flow. The webhook's URL comes from the environment variable
``FCN_WEBHOOK_URL`` or, where that is not set, from the Secret block ``fcn-webhook-url`` of the
Prefect server; without either nothing is sent. The URL is a secret, since who has it can post:
it is in no parameter, log line or artifact.

What is posted is JSON: ``text`` for people, as Slack, Mattermost and their kin show it, and
the same as fields for programs.
"""

import json
import os
from contextlib import suppress
from typing import Any
from urllib.request import Request, urlopen

import httpx
from prefect.blocks.system import Secret
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import PrefectException
from prefect.flows import Flow
from prefect.logging.loggers import flow_run_logger
from prefect.settings import PREFECT_CLIENT_MAX_RETRIES, temporary_settings
from prefect.states import Cancelled
from prefect.utilities.urls import url_for

from tasks import stores
from tasks.artifacts import duration
from tasks.pipeline import PipelineSummary
from tasks.settle import PROCESS_ENDED
from tasks.shards import PredictSummary

__all__ = ["notify", "summary"]

URL_VARIABLE = "FCN_WEBHOOK_URL"
URL_BLOCK = "fcn-webhook-url"

TIMEOUT = 10
"""Seconds that the receiver has to take the connection, and then to answer."""

ENDED_ITSELF = "ended itself: its worker had not heard of the cancel"
"""Message of a run that `tasks.cancel_watch` has cancelled."""

MAX_MESSAGE_LENGTH = 2000
"""Characters of a state's message that are passed on; receivers refuse pages of it."""


_TOLD = (ENDED_ITSELF, PROCESS_ENDED)
"""Messages of cancels that the run's own process tells: others are the server's or a person's."""


def notify(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Post how a run has ended: a hook for completion, failure, crash and cancel.

    Runs within another run are not told of; the outer one is. A webhook that fails costs a
    warning, never the run. Of a crash the server's word counts, which `tasks.settle` may have
    changed: a run that crashed while it was being cancelled ends as cancelled. Its worker, which
    runs the hooks of a cancel before it reports the end, leaves it at that where the run's own
    process has told.
    """
    if flow_run.parent_task_run_id is not None:
        return
    try:
        if not (url := _webhook_url()):
            return
        if state.is_crashed():
            state = _final_state(flow_run) or state
        elif state.is_cancelling():
            ended = _final_state(flow_run)
            if ended and not (ended.is_cancelled() and ended.message not in _TOLD):
                return
            state = Cancelled(message=state.message)
        _post(url, summary(flow, flow_run, state))
        flow_run_logger(flow_run, flow).info("the webhook was told")
    except Exception as error:  # noqa: BLE001 - the run has ended as it has
        # Not the error's text, which may hold the URL; the code is that of an HTTP answer.
        flow_run_logger(flow_run, flow).warning(
            "the webhook was not told: %s %s", type(error).__name__, getattr(error, "code", "")
        )


def summary(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> dict[str, Any]:
    """What the webhook is told: ``text``, and the same as fields.

    ``flow``, ``run`` (its name), ``run_id``, ``state``, ``seconds`` since the run began,
    ``message``, ``url`` of the run's page; ``counts`` of images by status, of a prediction
    that completed, else None.
    """
    message = stores.redact_text(state.message or "")[:MAX_MESSAGE_LENGTH]
    begin = flow_run.start_time or state.timestamp
    seconds = max(0.0, (state.timestamp - begin).total_seconds())
    counts = _counts(state)
    url = url_for(flow_run)
    counted = ", ".join(f"{count:,} {status}" for status, count in (counts or {}).items())
    lines = (
        f"{flow.name} {state.name} after {duration(seconds)}: {flow_run.name}",
        counted or message,
        url or "",
    )
    return {
        "text": "\n".join(line for line in lines if line),
        "flow": flow.name,
        "run": flow_run.name,
        "run_id": str(flow_run.id),
        "state": state.name,
        "seconds": round(seconds, 1),
        "message": message,
        "counts": counts,
        "url": url,
    }


def _final_state(flow_run: FlowRun) -> State[Any] | None:
    """The final state that the server knows of the run, if it answers and knows one."""
    # A client that asks again waits for minutes; an end is told also where the server is away.
    once = temporary_settings({PREFECT_CLIENT_MAX_RETRIES: 0})
    away = suppress(httpx.HTTPError, OSError, ValueError, PrefectException)  # or a proxy's page
    with away, once, get_client(sync_client=True) as client:
        known = client.read_flow_run(flow_run.id).state
        return known if known and known.is_final() else None
    return None


def _counts(state: State[Any]) -> dict[str, int] | None:
    """Images by status of a completed prediction, also of one within a pipeline."""
    result = state.result(raise_on_failure=False) if state.is_completed() else None
    if isinstance(result, PipelineSummary):
        result = result.prediction
    if not isinstance(result, PredictSummary):
        return None
    return {"ok": result.ok, "partial": result.partial, "failed": result.failed}


def _webhook_url() -> str | None:
    if url := os.environ.get(URL_VARIABLE):
        return url
    try:
        block: Any = Secret.load(URL_BLOCK)  # typed for callers with an event loop, too
    except ValueError:  # no such block
        return None
    return str(block.get())


def _post(url: str, body: dict[str, Any]) -> None:
    """POST JSON. By urllib, which writes no URL into any log; httpx logs each request's."""
    if not url.startswith(("https://", "http://")):
        raise ValueError("the webhook's URL is none of http or https")
    headers = {"Content-Type": "application/json"}
    request = Request(url, json.dumps(body).encode(), headers)  # noqa: S310 - http(s), see above
    with urlopen(request, timeout=TIMEOUT):  # noqa: S310
        pass
