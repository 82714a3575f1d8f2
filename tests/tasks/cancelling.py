"""A flow that is cancelled, and nobody ends it: ``python -m tests.tasks.cancelling RUN_ID``."""

import sys
import time

from prefect import flow
from prefect.client.orchestration import get_client
from prefect.engine import handle_engine_signals
from prefect.flow_engine import run_flow

from tasks import cancel_watch
from tasks.hooks import HOOKS
from tasks.run_start import start_run


@flow(name="long", **HOOKS)
def long() -> None:
    """Takes until somebody ends it."""
    start_run()
    time.sleep(300)


if __name__ == "__main__":
    cancel_watch.LOOK, cancel_watch.PATIENCE = 0.3, 0.5
    with get_client(sync_client=True) as client:
        flow_run = client.read_flow_run(sys.argv[1])
    with handle_engine_signals(flow_run.id):
        run_flow(long, flow_run=flow_run)
