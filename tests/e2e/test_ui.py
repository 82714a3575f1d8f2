"""``make ui``, and one Ctrl-C."""

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from prefect.client.orchestration import get_client

from tests.e2e.machine import ROOT, alive, children, machine, wait_for
from tests.e2e.runs import Job, names_in, task_runs

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(900)]


def test_one_ctrl_c_ends_server_worker_and_run_and_the_record_says_so(tmp_path):
    job = Job(tmp_path / "work", num_images=600, images_per_shard=200).make()
    with machine(tmp_path / "home") as made, (tmp_path / "said").open("wb") as said:
        terminal = subprocess.Popen(
            [sys.executable, "deployments/ui.py"],
            cwd=ROOT,
            env=made.environment | {"PORT": str(made.port)},
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        made.started.append(terminal)
        wait_for("address", lambda: "Open http" in (tmp_path / "said").read_text(), 300)
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name("predict/predict")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=job.parameters)
            wait_for("shard at work", lambda: at_work(client, run.id), 180)
        family = children(terminal.pid)
        assert len(family) >= 5  # server, worker.py, the worker, the run, processes that decode

        pressed = time.monotonic()
        os.killpg(terminal.pid, signal.SIGINT)
        assert terminal.wait(30) == 128 + signal.SIGINT
        assert time.monotonic() - pressed < 20
        assert [pid for pid in family if alive(pid)] == []
        with sqlite3.connect(made.home / "prefect.db") as record:
            runs = record.execute("SELECT state_type FROM flow_run").fetchall()
            unfinished = record.execute(
                "SELECT name FROM task_run WHERE state_type IN ('RUNNING', 'PENDING')"
            ).fetchall()
        assert runs == [("CRASHED",)]
        assert unfinished == []


def at_work(client, run_id):
    """Shards that the server shows as running."""
    return [name for name in names_in(task_runs(client, run_id), "Running") if "shard" in name]
