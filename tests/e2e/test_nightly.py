"""From an empty machine to a nightly run that was killed, started again, and complete."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, DeploymentUpdate
from prefect.client.schemas.schedules import IntervalSchedule

from tests.e2e.machine import kill, machine, wait_for
from tests.e2e.runs import Job, names_in, states, task_runs
from tests.receiver import receiving

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(1500)]

AHEAD = timedelta(minutes=5, seconds=20)
"""From the schedule to its first run, as a night's run is scheduled the day before. Prefect's
automations take the events of a run that starts within five minutes of being scheduled up to
fifteen minutes late: they wait for an event of the scheduling, which its scheduler never sends."""


def test_a_scheduled_run_that_was_killed_is_found_started_again_and_complete(tmp_path, monkeypatch):
    job = Job(tmp_path / "work", num_images=200).make()
    with receiving() as webhook, machine(tmp_path / "home") as made:
        monkeypatch.setenv("FCN_WEBHOOK_URL", webhook.url)
        made.start_server()
        made.set_up()
        worker = made.start_worker()
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("predict/predict")
            tags = DeploymentUpdate(tags=[*deployment.tags, "restart"])
            client.update_deployment(deployment.id, tags)
            nightly = DeploymentScheduleCreate(
                schedule=IntervalSchedule(
                    interval=timedelta(days=1),
                    anchor_date=datetime.now(UTC) + AHEAD,
                ),
                parameters=job.parameters,
            )
            client.create_deployment_schedules(deployment.id, [nightly])
            wait_for("part of the scheduled run", lambda: job.num_parts() >= 3, 600)

            [run] = [run for run in client.read_flow_runs() if run.start_time]
            kill(worker)
            killed = time.time()
            assert 3 <= job.num_parts() < job.num_shards
            made.start_worker()  # as when the machine is back

            crash = wait_for("crash", lambda: states(client, run.id).get("Crashed"), 150)
            assert crash.timestamp.timestamp() - killed < 120
            wait_for("completion", lambda: states(client, run.id).get("Completed"), 240)
            assert client.read_flow_run(run.id).run_count == 2
            recorded = wait_for("last record", lambda: settled(client, run.id), 30)

        shards = {f"shard-{number:05d}" for number in range(job.num_shards)}
        assert shards <= set(names_in(recorded, "Completed"))
        assert job.num_parts() == job.num_shards
        assert "rows: 200" in made.run("-m", "flows", "verify", "--output-url", str(job.output))
        told = [(body["state"], body["run_id"]) for body in webhook.bodies if "run_id" in body]
        assert told[:2] == [("Crashed", str(run.id)), ("Completed", str(run.id))]


def settled(client, run_id):
    """The task runs of a flow run, when none is left as running."""
    found = task_runs(client, run_id)
    return None if names_in(found, "Running") or names_in(found, "Pending") else found
