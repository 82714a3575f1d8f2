"""A worker that is told to stop."""

import os
import signal

import pytest
from prefect.client.orchestration import get_client

from tests.e2e.machine import alive, children, machine, wait_for
from tests.e2e.runs import Job, names_in, states, task_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]


def test_a_stopped_worker_leaves_nothing_running_and_nothing_marked_running(tmp_path):
    job = Job(tmp_path / "work", num_images=600, images_per_shard=200).make()
    with machine(tmp_path / "home") as made:
        made.start_server()
        made.set_up()
        worker = made.start_worker()
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("predict/predict")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=job.parameters)
            wait_for("shard at work", lambda: at_work(client, run.id), 180)
            started = children(worker.pid)
            assert len(started) >= 3  # the worker, the run, and processes that decode

            os.kill(worker.pid, signal.SIGTERM)
            worker.wait(10)  # as long as docker stop waits
            assert [pid for pid in started if alive(pid)] == []
            assert not client.read_flow_run(run.id).state.is_running()
            assert "Crashed" in states(client, run.id)
            wait_for("last record", lambda: not at_work(client, run.id), 20)


def at_work(client, run_id):
    """Shards that the server shows as running."""
    return [name for name in names_in(task_runs(client, run_id), "Running") if "shard" in name]


def test_an_idle_worker_ends_at_once(tmp_path):
    with machine(tmp_path / "home") as made:
        made.start_server()
        made.set_up()
        worker = made.start_worker()
        wait_for("worker", lambda: "started" in (made.home / "worker.log").read_text(), 90)
        os.kill(worker.pid, signal.SIGTERM)
        worker.wait(5)
