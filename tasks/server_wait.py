"""What a process says that waits for its Prefect server.

Prefect's client asks a server that is away again after 2, 4, 8, … s, for four minutes
(``[tool.prefect.client]`` in pyproject.toml), and tells of it at level debug only.
"""

import logging
import time

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, PREFECT_CLIENT_MAX_RETRIES

from tasks import stores
from tasks.log_records import message_of
from tasks.urls import redact_text

PATIENCE = 60.0
"""Seconds that a server has to answer before a run begins: it may have been started just now."""

TELL_PAUSE = 30.0
"""Seconds between two lines about the same wait."""

QUIET = 300.0
"""Seconds without a question that was asked again, after which the next one is a new wait."""

_CLIENT = logging.getLogger("prefect.client")
_BELOW = logging.getLogger("prefect.client.subscriptions")
"""The one logger below: it would inherit the level, and not the filter."""
_ASKED_AGAIN = "Another attempt will be made in"
"""What Prefect's client says of a question that it asks again."""


class ServerError(Exception):
    """The Prefect server that the settings name does not answer."""


def tell_waiting() -> None:
    """From now on, warn of every wait for the Prefect server. Can be called again."""
    if _waiting not in _CLIENT.filters:
        _waiting.shows_debug = _CLIENT.isEnabledFor(logging.DEBUG)
        _CLIENT.addFilter(_waiting)
        if _BELOW.level == logging.NOTSET:
            _BELOW.setLevel(_CLIENT.getEffectiveLevel())
    _CLIENT.setLevel(logging.DEBUG)


class _Waiting(logging.Filter):
    """Makes warnings of the client's debug lines on waits, and drops its others.

    Attributes:
        shows_debug: Debug lines were asked for: drop none.
    """

    shows_debug = False

    def __init__(self) -> None:
        super().__init__()
        self._start = self._last = self._told = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is shown."""
        if record.levelno > logging.DEBUG:
            return True
        if _ASKED_AGAIN not in message_of(record) or not self._is_due():
            return self.shows_debug
        reason = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else "busy"
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        record.exc_info = record.exc_text = None
        record.args = ()
        record.msg = (
            f"waiting for the Prefect server at {_server()} for {self._last - self._start:.0f} s "
            f"({reason}); asked again for {_minutes()} min. Start it there (prefect server start); "
            "a run that gives up goes on where it was when it is run again"
        )
        return True

    def _is_due(self) -> bool:
        """Note that something is waited for; whether it is time to say so."""
        now = time.monotonic()
        if now - self._last > QUIET:
            self._start, self._told = now, float("-inf")
        self._last = now
        is_due = now - self._told >= TELL_PAUSE
        if is_due:
            self._told = now
        return is_due


_waiting = _Waiting()


def _server() -> str:
    return stores.redact(PREFECT_API_URL.value() or "this machine")


def _minutes() -> str:
    """For how long Prefect's client asks again."""
    seconds = sum(2**n for n in range(1, PREFECT_CLIENT_MAX_RETRIES.value() + 1))
    return f"{seconds / 60:.1f}"


def wait_for_server() -> None:
    """Return when the server answers, or at once where none is named.

    Raises:
        ServerError: No answer within `PATIENCE` seconds.
    """
    tell_waiting()
    if not PREFECT_API_URL.value():
        return
    start = told = None
    with get_client(sync_client=True) as client:
        while error := client.api_healthcheck():
            now = time.monotonic()
            start = now if start is None else start
            reason = redact_text(str(error)) or type(error).__name__
            if now - start > PATIENCE:
                raise ServerError(
                    f"no Prefect server answers at {_server()} ({reason}); start it there (prefect "
                    "server start), or unset PREFECT_API_URL to do without"
                )
            if told is None or now - told > TELL_PAUSE:
                told = now
                _CLIENT.warning(
                    "waiting for the Prefect server at %s for %.0f s (%s), %.0f s at most; start "
                    "it there (prefect server start), or unset PREFECT_API_URL to do without",
                    *(_server(), now - start, reason, PATIENCE),
                )
            time.sleep(1)
