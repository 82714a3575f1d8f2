"""Image, compose file and job templates, as far as they can be checked without a container."""

import ast
import asyncio
import fnmatch
import json
import os
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path

import pytest
import yaml
from docker.types import HostConfig
from dotenv import dotenv_values
from prefect.settings import Settings
from prefect.settings.legacy import _get_settings_fields
from prefect.workers.base import BaseJobConfiguration
from pydantic import TypeAdapter

ROOT = Path(__file__).resolve().parents[1]
PREFECT = re.search(r"^prefect==(\S+)$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)[1]


def text(name):
    return (ROOT / "deployments" / name).read_text(encoding="utf-8")


COMPOSE = yaml.safe_load(text("compose.yaml"))
SERVICES = COMPOSE["services"]
WORKER = list(yaml.safe_load_all(text("kubernetes-worker.yaml")))
PREFECT_FILE = yaml.safe_load(text("prefect.yaml"))
JOB_VARIABLES = PREFECT_FILE["definitions"]["gpu"]["job_variables"]
TEMPLATES = ["docker-job.json", "kubernetes-job.json"]


def strings(value):
    """Every text in a parsed file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from strings(part)


def instructions(name):
    """The instructions of the Dockerfile with that name, their arguments split."""
    lines = text("Dockerfile").replace("\\\n", " ").splitlines()
    return [line.split()[1:] for line in lines if line.startswith(f"{name} ")]


def test_the_image_is_made_of_files_that_are_there_and_sent():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {
        name
        for arguments in instructions("COPY")
        if not arguments[0].startswith("--")
        for name in arguments[:-1]
    }
    assert copied == sent
    assert [name for name in copied if not (ROOT / name).exists()] == []


def test_the_image_leaves_out_secrets():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert ignored.index("deployments/.env") > ignored.index("!deployments")
    assert "/deployments/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    names = [word.partition("=")[0] for line in instructions("ENV") for word in line]
    assert not [name for name in names if re.search("KEY|SECRET|PASSWORD|TOKEN|AUTH", name)]


def test_the_image_installs_tested_versions_of_extras_there_are():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [extras] = [line[0] for line in instructions("ARG") if line[0].startswith("EXTRAS=")]
    known = set(project["optional-dependencies"])
    assert set(re.search(r'EXTRAS="(.*?)"', text("Dockerfile"))[1].split()) <= known, extras
    installs = re.findall(r"pip install [^&]*", text("Dockerfile").replace("\\\n", " "))
    assert [line for line in installs if "constraint constraints.txt" not in line] == []
    assert "--compile-bytecode" in text("Dockerfile")


def test_the_image_runs_as_nobody_special():
    assert instructions("USER") == [["1000:1000"]]
    pod = json.loads(text("kubernetes-job.json"))["job_configuration"]["job_manifest"]["spec"][
        "template"
    ]["spec"]
    assert pod["securityContext"]["runAsUser"] == 1000


def test_every_value_that_compose_asks_for_is_in_the_example():
    asked = set(re.findall(r"\$\{(\w+)", text("compose.yaml")))
    offered = dict(re.findall(r"^(\w+)=(.*)$", text("env.example"), re.MULTILINE))
    assert asked <= set(offered)
    profiles = {name for service in SERVICES.values() for name in service.get("profiles", [])}
    assert offered["COMPOSE_PROFILES"] in profiles == {"cpu", "gpu"}


def test_compose_names_what_there_is():
    volumes = [volume for one in SERVICES.values() for volume in one.get("volumes", [])]
    assert {volume.partition(":")[0] for volume in volumes} == set(COMPOSE["volumes"])
    needed = {name for one in SERVICES.values() for name in one.get("depends_on", [])}
    assert needed <= set(SERVICES)
    hosts = {
        name
        for value in strings(SERVICES)
        for name in re.findall(r"(?:://|[\w}]@)([a-z][a-z0-9]*):\d", value)
    }
    assert hosts <= set(SERVICES)
    scripts = [value for value in strings(SERVICES) if value.endswith(".py")]
    assert scripts
    assert [name for name in scripts if not (ROOT / name).is_file()] == []
    build = SERVICES["worker"]["build"]
    assert (ROOT / "deployments" / build["context"]).resolve() == ROOT
    assert (ROOT / build["dockerfile"]).is_file()


def test_a_volume_in_the_home_is_of_who_runs_there():
    volumes = [volume.partition(":")[2] for volume in SERVICES["worker"]["volumes"]]
    assert volumes == ["/home/fcn/.cache"]
    made = re.search(r"install --directory --owner fcn --group fcn (\S+)", text("Dockerfile"))
    assert made[1] in volumes


def test_ports_are_open_on_this_host_only_and_those_that_clients_call():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports == ["127.0.0.1:4200:4200", "127.0.0.1:8333:8333"]
    environment = SERVICES["worker"]["environment"]
    assert environment["PREFECT_API_URL"] == "http://server:4200/api"
    assert environment["AWS_ENDPOINT_URL"] == "http://s3:8333"


def test_images_have_versions_and_prefect_the_tested_one():
    images = {service["image"] for service in SERVICES.values()} - {"fcn-flows"}
    images |= {value for value in strings(WORKER) if value.startswith("prefecthq/")}
    assert [image for image in images if not re.search(r":v?\d", image)] == []
    tags = [image.partition(":")[2] for image in images if image.startswith("prefecthq/")]
    assert len(tags) == 2
    assert [tag for tag in tags if not tag.startswith(f"{PREFECT}-")] == []


def test_an_image_s_tag_has_its_reason_beside_it():
    lines = text("compose.yaml").splitlines()
    tagged = [number for number, line in enumerate(lines) if re.search(r"image: \S+:", line)]
    assert len(tagged) == 3
    assert [lines[n] for n in tagged if not lines[n - 1].lstrip().startswith("#")] == []


CONNECT = """
from prefect.settings import get_current_settings
from sqlalchemy import make_url
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

url = make_url(get_current_settings().server.database.connection_url.get_secret_value())
print(PGDialect_asyncpg().create_connect_args(url)[1])
"""


@pytest.mark.parametrize("password", ["change-me", "p@ss/w:o%r#d$", r"a b\"&?=+{}[]!\~ü"])
def test_the_server_logs_in_with_the_password_as_it_was_typed(tmp_path, password):
    """From the .env file to what the driver is given, as Compose and the server do it."""
    (tmp_path / ".env").write_text(
        text("env.example").replace(
            "POSTGRES_PASSWORD='change-me'", f"POSTGRES_PASSWORD='{password}'"
        ),
        encoding="utf-8",
    )
    values = dotenv_values(tmp_path / ".env", interpolate=False)

    def environment(service):
        return {
            name: re.sub(r"\$\{(\w+)(:\?[^}]*)?\}", lambda found: values[found[1]], value)
            for name, value in SERVICES[service]["environment"].items()
        }

    assert environment("postgres")["POSTGRES_PASSWORD"] == password
    run = subprocess.run(
        [sys.executable, "-c", CONNECT],
        cwd=tmp_path,
        env=os.environ | environment("server") | {"PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ast.literal_eval(run.stdout) == {
        "host": "postgres",
        "port": 5432,
        "user": environment("postgres")["POSTGRES_USER"],
        "database": environment("postgres")["POSTGRES_DB"],
        "password": password,
    }


def test_every_setting_named_is_one_of_prefects():
    known = set(_get_settings_fields(Settings))
    named = {name for one in SERVICES.values() for name in one.get("environment", {})}
    [deployment] = [part for part in WORKER if part["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    named |= {variable["name"] for variable in container["env"]}
    ours = {name for name in named if name.startswith("PREFECT_")}
    ours = {name for name in ours if not name.startswith("PREFECT_INTEGRATIONS_KUBERNETES_")}
    assert len(ours) > 10
    assert ours <= known


def test_the_server_records_as_the_checkout_s_own_does():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["prefect"]
    for name in ("task_run_recorder", "event_persister"):
        for key, value in settings["server"]["services"][name].items():
            variable = f"PREFECT_SERVER_SERVICES_{name}_{key}".upper()
            assert SERVICES["server"]["environment"][variable] == str(value)
    environment = SERVICES["server"]["environment"]
    assert (
        environment["PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE"]
        == (settings["server"]["concurrency"]["lease_storage"])
    )
    buffer = TypeAdapter(timedelta).validate_python(
        environment["PREFECT_SERVER_EVENTS_EXPIRED_BUCKET_BUFFER"]
    )
    assert buffer.total_seconds() == settings["server"]["events"]["expired_bucket_buffer"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_job_template_uses_every_variable_and_describes_it(name):
    template = json.loads(text(name))
    used = {
        variable
        for value in strings(template["job_configuration"])
        for variable in re.findall(r"\{\{ (\w+) \}\}", value)
    }
    fields = template["variables"]["properties"]
    assert used == set(fields)
    assert [key for key, field in fields.items() if not field.get("description")] == []
    assert [key for key, field in fields.items() if "default" not in field] == []


class Rendered(BaseJobConfiguration):
    """A job with the fields of Docker's and Kubernetes' own."""

    container_create_kwargs: dict | None = None
    job_manifest: dict | None = None


def rendered(name, variables):
    template = json.loads(text(name))
    return asyncio.run(Rendered.from_template_and_values(template, variables))


def test_a_docker_container_gets_one_gpu_where_it_asks(prefect_server):
    asked = rendered("docker-job.json", JOB_VARIABLES).container_create_kwargs
    [request] = HostConfig(version="1.50", **asked)["DeviceRequests"]
    assert (request["Driver"], request["Count"]) == ("nvidia", 1)
    assert request["Capabilities"] == [["gpu"]]
    plain = HostConfig(version="1.50", **rendered("docker-job.json", {}).container_create_kwargs)
    assert "DeviceRequests" not in plain
    assert plain["ShmSize"] == 2 << 30


def test_a_kubernetes_job_gets_one_gpu_where_it_asks(prefect_server):
    def container(variables):
        manifest = rendered("kubernetes-job.json", variables).job_manifest
        assert (manifest["apiVersion"], manifest["kind"]) == ("batch/v1", "Job")
        [only] = manifest["spec"]["template"]["spec"]["containers"]
        return only

    assert container(JOB_VARIABLES)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "nvidia.com/gpu" not in container({})["resources"]["limits"]


def test_the_kubernetes_worker_may_do_in_its_namespace_what_it_must():
    kinds = [part["kind"] for part in WORKER]
    assert kinds == ["ServiceAccount", "Role", "RoleBinding", "Deployment"]
    names = {part["metadata"]["name"] for part in WORKER}
    assert names == {"fcn-worker"}
    [role] = [part for part in WORKER if part["kind"] == "Role"]
    verbs = {resource: rule["verbs"] for rule in role["rules"] for resource in rule["resources"]}
    assert {"create", "delete", "watch"} <= set(verbs["jobs"])
    assert "*" not in list(strings(role))


def test_buckets_are_made_once_the_store_answers(s3):
    name = s3.new_bucket().removeprefix("s3://")
    run = subprocess.run(
        [sys.executable, "deployments/make_buckets.py", name, f"{name}-new"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    import boto3

    buckets = {bucket["Name"] for bucket in boto3.client("s3").list_buckets()["Buckets"]}
    assert {name, f"{name}-new"} <= buckets


def test_nothing_copied_is_left_out_again():
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    back = ignored[ignored.index("!deployments") + 1 :]
    assert not [rule for rule in back if fnmatch.fnmatch("deployments/set_up.py", rule)]
