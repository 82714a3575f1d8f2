"""Tasks that need a store are tried again while it is out."""

from typing import Any, TypedDict

from prefect.cache_policies import NO_CACHE, CachePolicy
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import RetryConditionCallable, Task, exponential_backoff

from tasks import stores

__all__ = ["RETRIES", "RETRYING"]

RETRIES = 4
"""Further attempts at a task whose store is out, with growing pauses."""

RETRY_DELAYS = exponential_backoff(backoff_factor=5)
"""Those pauses: 5, 10, 20, 40 s, give or take."""


class Retrying(TypedDict):
    """Arguments of ``@task``."""

    cache_policy: CachePolicy
    retries: int
    retry_delay_seconds: Any
    retry_jitter_factor: float
    retry_condition_fn: RetryConditionCallable


def _is_transient(_task: Task[..., Any], _run: TaskRun, state: State[Any]) -> bool:
    """Whether a store may have recovered by the next attempt."""
    return isinstance(state.data, BaseException) and stores.is_transient(state.data)


RETRYING: Retrying = {
    "cache_policy": NO_CACHE,
    "retries": RETRIES,
    "retry_delay_seconds": RETRY_DELAYS,
    "retry_jitter_factor": 1,
    "retry_condition_fn": _is_transient,
}
"""Of a task that is tried again, and never answered from Prefect's cache."""
