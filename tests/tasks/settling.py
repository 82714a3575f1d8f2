"""A flow whose process is killed: ``python -m tests.tasks.settling FLOW_RUN_ID [stay]``."""

import sys
import time

from prefect import flow, task
from prefect.client.orchestration import get_client
from prefect.flow_engine import run_flow

from tasks.hooks import HOOKS


@task
def work(stay: bool) -> None:
    """Takes until somebody kills it."""
    if stay:
        time.sleep(300)


@task(retries=1, retry_delay_seconds=300)
def try_again(stay: bool) -> None:
    """Waits for its next try."""
    if stay:
        raise OSError("not now")


@flow(name="inner", **HOOKS)
def inner(stay: bool) -> None:
    """A flow within the run."""
    waiting = try_again.submit(stay)
    work(stay)
    waiting.result()


@flow(name="outer", **HOOKS)
def outer(stay: bool) -> None:
    """The run."""
    waiting = work.submit(stay)
    inner(stay)
    waiting.result()


if __name__ == "__main__":
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(sys.argv[1])
    run_flow(outer, flow_run=flow_run, parameters={"stay": sys.argv[2:] == ["stay"]})
