"""A cancelled run of a deployment whose worker does not end it, in a process of its own."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings
from prefect.states import Cancelling, Pending

from tests.tasks.cancelling import long

ROOT = Path(__file__).resolve().parents[2]


def test_a_cancelled_run_that_nobody_ends_ends_itself(prefect_server):
    with get_client(sync_client=True) as client:
        deployment = client.create_deployment(client.create_flow(long), "long")
        run = client.create_flow_run_from_deployment(deployment, state=Pending())
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        running = subprocess.Popen(
            [sys.executable, "-m", "tests.tasks.cancelling", str(run.id)],
            cwd=ROOT,
            env=os.environ | settings,
        )
        try:
            wait_until(lambda: state_of(run) == "Running")
            client.set_flow_run_state(run.id, Cancelling())
            running.wait(30)
        finally:
            running.kill()
            running.wait()
    assert state_of(run) == "Cancelled"


def state_of(run: FlowRun) -> str | None:
    with get_client(sync_client=True) as client:
        return client.read_flow_run(run.id).state_name


def wait_until(there: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.2)
