"""A server that is away for a minute while a prediction runs."""

import time

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from tests.e2e.machine import kill, machine, wait_for
from tests.e2e.runs import Job, names_in, states, task_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_nothing_is_lost_when_the_server_is_away_for_a_minute(tmp_path):
    job = Job(tmp_path / "work", num_images=600).make()
    with machine(tmp_path / "home") as made:
        server = made.start_server()
        made.set_up()
        made.start_worker()
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("predict/predict")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=job.parameters)
            wait_for("part", lambda: job.num_parts() >= 3, 180)

        kill(server)
        before = job.num_parts()
        time.sleep(60)
        assert job.num_parts() > before  # the work went on without it
        made.start_server()
        with get_client(sync_client=True) as client:
            wait_for("completion", lambda: states(client, run.id).get("Completed"), 300)
            shards = [f"shard-{number:05d}" for number in range(job.num_shards)]
            wait_for("last record", lambda: recorded(client, run.id) >= set(shards), 60)
            assert client.read_flow_run(run.id).state.is_completed()
            assert "Crashed" not in states(client, run.id)
            # Lines that were on their way are sent again after 2, 4, 8, … 64 s.
            wait_for("line of every shard", lambda: logged(client, run.id) >= set(shards), 180)
        assert job.num_parts() == job.num_shards
        assert made.run("-m", "flows", "verify", "--output-url", str(job.output))


def recorded(client, run_id):
    """Task runs that the server knows to have completed."""
    return set(names_in(task_runs(client, run_id), "Completed"))


def logged(client, run_id):
    """What the lines of a run's log are about."""
    return {line.partition(":")[0] for line in log(client, run_id)}


def log(client, run_id):
    """The lines of a run's log."""
    lines = []
    while True:
        wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run_id]))
        page = client.read_logs(wanted, limit=200, offset=len(lines))
        lines += [line.message for line in page]
        if len(page) < 200:
            return lines
