"""What a run shows while it works and when it is done: Prefect artifacts.

To be called inside a flow or task run only: an artifact belongs to the run that makes it.
An artifact is decoration. A server that cannot take one costs a warning, never the run.
"""

import contextvars
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from logging import Logger, LoggerAdapter
from types import TracebackType
from typing import Any, Self, TypeVar, cast
from uuid import UUID

import httpx
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
)
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import SyncClientContext
from prefect.exceptions import MissingContextError, PrefectException
from prefect.logging import get_logger, get_run_logger

from tasks import terminal
from tasks.markdown import image as image_markdown

__all__ = [
    "Progress",
    "Stopped",
    "artifact_key",
    "image_markdown",
    "publish_markdown",
    "publish_table",
]

MAX_KEY_LENGTH = 100

Result = TypeVar("Result")


def artifact_key(*words: object) -> str:
    """A key that Prefect accepts, of any words: lower-case letters, digits, single dashes.

    Raises:
        ValueError: no letter or digit in any of the words.
    """
    text = " ".join(str(word) for word in words).lower()
    key = re.sub(r"[^a-z0-9]+", "-", text).strip("-")[:MAX_KEY_LENGTH].rstrip("-")
    if not key:
        raise ValueError(f"an artifact key needs a letter a-z or a digit, found {words}")
    return key


def publish_table(key: str, rows: Sequence[Mapping[str, Any]], description: str = "") -> None:
    """Publish a table, a mapping per row, under a key (see `artifact_key`)."""
    table = [dict(row) for row in rows]
    _attempt(lambda: create_table_artifact(table, artifact_key(key), description), key)


def publish_markdown(key: str, text: str, description: str = "") -> None:
    """Publish a Markdown page under a key (see `artifact_key`)."""
    _attempt(lambda: create_markdown_artifact(text, artifact_key(key), description), key)


class Stopped(Exception):
    """What is told to threads that go on working for a run that was stopped."""


class Progress:
    """A progress bar of the run's page, with rate and time left in its description.

    ::

        with Progress("train", total=num_images, description="Training") as progress:
            for batch in batches:
                ...
                progress.advance(len(batch), note=f"loss {loss:.3f}")

    The page then reads ``Training: 12 %, 1,234 of 10,000 images, 52.1 images/s, about 3 min
    left; loss 0.412``. `advance` may be called from several threads, at any rate, and only
    counts: a thread of this object tells the server, at most once per ``interval``, and waits
    alone where a server is slow or away. On a terminal the same stands below a bar.

    Args:
        key: Made acceptable by `artifact_key`.
        total: How many there are to do; 0 is done at once.
        description: What the run is doing.
        unit: What is counted, in the plural.
        done: How many of ``total`` earlier runs did; they don't count for the rate.
        interval: Least seconds between two updates.
    """

    def __init__(
        self,
        key: str,
        *,
        total: int,
        description: str,
        unit: str = "images",
        done: int = 0,
        interval: float = 2.0,
    ) -> None:
        self.total = total
        self.description = description
        self.unit = unit
        self.done = done
        self._initial = done
        self._interval = interval
        self._note = ""
        self._lock = threading.Lock()
        self._start = time.monotonic()
        self._key = artifact_key(key)
        self._id: UUID | None = None
        self._client: SyncPrefectClient | None = None
        self._open = ExitStack()
        self._bar = terminal.Bar()
        self._stopped = False
        self._ended = threading.Event()
        # In the run's context, so that a warning stands in the run's log.
        self._thread = threading.Thread(
            target=contextvars.copy_context().run, args=(self._report,), daemon=True
        )

    def __enter__(self) -> Self:
        self._start = time.monotonic()
        self._open.enter_context(self._bar)
        # The run's own client: one that Prefect made for another thread would never be closed.
        self._client = self._open.enter_context(SyncClientContext.get_or_create()).client
        self._id = _attempt(self._create, self._key)
        self._thread.start()
        return self

    def advance(self, count: int = 1, note: str = "") -> None:
        """Count ``count`` more as done; a ``note`` stays until the next one.

        Raises:
            Stopped: the run was stopped; threads that work for it need not go on.
        """
        if self._stopped:
            raise Stopped(f"the run was stopped; {self.done:,} of {self.total:,} {self.unit} done")
        with self._lock:
            self.done += count
            self._note = note or self._note

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._open:
            if kind is not None:
                self._stopped = True
                self._note = f"stopped by {kind.__name__}"
            self._ended.set()
            self._thread.join()
            self._tell(*self._counted())

    def _report(self) -> None:
        """Tell of what has changed, until the end."""
        told = self._counted()
        while not self._ended.wait(self._interval):
            counted = self._counted()
            if counted != told:
                self._tell(*counted)
                told = counted

    def _counted(self) -> tuple[int, str]:
        with self._lock:
            return self.done, self._note

    def _percent(self, done: int) -> float:
        return min(100.0, 100.0 * done / self.total) if self.total else 100.0

    def _text(self, done: int, note: str) -> str:
        seconds = time.monotonic() - self._start
        counted = progress_text(
            done, self.total, seconds=seconds, unit=self.unit, initial=self._initial
        )
        return f"{self.description}: {counted}" + (f"; {note}" if note else "")

    def _create(self) -> UUID:
        done, note = self._counted()
        percent, text = self._percent(done), self._text(done, note)
        return cast("UUID", create_progress_artifact(percent, self._key, text))

    def _tell(self, done: int, note: str) -> None:
        percent, text = self._percent(done), self._text(done, note)
        self._bar.show(percent, text)
        client, artifact_id = self._client, self._id
        if client is not None and artifact_id is not None:
            update = ArtifactUpdate(data=percent, description=text)
            _attempt(lambda: client.update_artifact(artifact_id, update), self._key)


def progress_text(done: int, total: int, *, seconds: float, unit: str, initial: int = 0) -> str:
    """Share, count, rate and time left: ``33 %, 30 of 90 images, 10.0 images/s, about 6 s left``.

    The share is rounded down: 100 % is said when all is done. Then the time it took stands in
    place of the time left.

    Args:
        done: How many are done, including ``initial``.
        total: How many there are.
        seconds: Time since ``initial`` were done.
        unit: What is counted, in the plural.
        initial: How many were done before the clock started.
    """
    percent = 100 * done // total if total else 100
    counted = f"{percent} %, {done:,} of {total:,} {unit}"
    if done <= initial or seconds <= 0:
        return counted
    rate = (done - initial) / seconds
    time_left = f"about {_roughly((total - done) / rate)} left"
    return f"{counted}, {_significant(rate)} {unit}/s, " + (
        time_left if done < total else duration(seconds)
    )


def duration(seconds: float) -> str:
    """Seconds for people: ``8 s``, ``2 min 05 s``, ``3 h 20 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def _roughly(seconds: float) -> str:
    """An estimate for people, without the seconds that it cannot know: ``8 s``, ``3 min``."""
    if 60 <= round(seconds) < 3570:
        return f"{round(seconds / 60)} min"
    return duration(seconds)


def _significant(rate: float) -> str:
    """A rate with as many decimals as say something: ``0.04``, ``5.2``, ``1,234``."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.1f}" if rate >= 1 else f"{rate:.2g}"


def _attempt(publish: Callable[[], Result], key: str) -> Result | None:
    """The result of a call to the server, or None and a warning where it fails."""
    try:
        return publish()
    except (httpx.HTTPError, PrefectException) as error:
        _logger().warning("artifact %s was not published: %s", key, error)
        return None


def _logger() -> Logger | LoggerAdapter[Any]:
    """The run's logger; in threads of the run's own, which know no run, Prefect's."""
    try:
        return get_run_logger()
    except MissingContextError:
        return get_logger("artifacts")
