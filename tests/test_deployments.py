"""The deployments on a real server, as ``prefect deploy`` registers them."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client
from prefect.settings import get_current_settings

from flows.command_line import VERBS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def deployments(prefect_server):
    """Every deployment of prefect.yaml, by name, after the commands of its first lines."""
    environment = os.environ | get_current_settings().to_environment_variables(exclude_unset=True)
    for command in (
        ("work-pool", "create", "--type", "process", "fcn-process"),
        ("--no-prompt", "deploy", "--prefect-file", "deployments/prefect.yaml", "--all"),
    ):
        run = subprocess.run(
            [sys.executable, "-m", "prefect", *command],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )
        assert run.returncode == 0, run.stdout + run.stderr
    with get_client(sync_client=True) as client:
        return {deployment.name: deployment for deployment in client.read_deployments()}


def test_every_verb_is_deployed_by_its_module_path(deployments):
    assert {name: deployment.entrypoint for name, deployment in deployments.items()} == {
        verb: f"flows.{verb}.{verb}" for verb in VERBS
    }


@pytest.mark.parametrize("verb", VERBS)
def test_a_deployment_pulls_nothing_and_starts_nothing_by_itself(deployments, verb):
    deployment = deployments[verb]
    assert deployment.work_pool_name == "fcn-process"
    assert not deployment.pull_steps
    assert [schedule for schedule in deployment.schedules if schedule.active] == []
    assert deployment.description
    assert "fcn" in deployment.tags


@pytest.mark.parametrize("verb", VERBS)
def test_every_field_of_the_form_is_described(deployments, verb):
    schema = deployments[verb].parameter_openapi_schema
    fields = dict(schema["properties"])
    for definition in schema.get("definitions", {}).values():
        fields |= definition.get("properties", {})
    assert [name for name, field in fields.items() if not field.get("description")] == []


def test_a_taken_port_is_named_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        run = subprocess.run(
            [sys.executable, "deployments/ui.py"],
            cwd=ROOT,
            env=os.environ | {"PORT": str(port), "PREFECT_HOME": str(tmp_path / "home")},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert run.returncode == 1
    assert run.stderr.startswith(f"error: port {port} cannot be used (")
    assert run.stderr.endswith("choose another: make ui PORT=4300\n")
    assert not (tmp_path / "home").exists()
