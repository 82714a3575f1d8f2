"""The deployments on a real server, as ``deployments/set_up.py`` registers them."""

import importlib
import importlib.util
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleUpdate, DeploymentUpdate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.utilities.schema_tools import validate

from flows.command_line import VERBS
from tasks.hooks import HOOKS

ROOT = Path(__file__).resolve().parents[1]
PREFECT_FILE = yaml.safe_load((ROOT / "deployments" / "prefect.yaml").read_text("utf-8"))
NAMES = [deployment["name"] for deployment in PREFECT_FILE["deployments"]]
ON_GPUS = {
    "train",
    "train-staged",
    "evaluate",
    "promote",
    "predict",
    "predict-partition",
    "pipeline",
}


def script(name):
    """A script of deployments/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "deployments" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def set_up(*options, **environment):
    return subprocess.run(
        [sys.executable, "deployments/set_up.py", *options],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module")
def deployments(prefect_server):
    """Every deployment, by name, after set_up.py."""
    with pytest.MonkeyPatch.context() as patch:
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        for name, value in settings.items():
            patch.setenv(name, value)
        run = set_up("--gpu", "gpu:rack:0")
        assert run.returncode == 0, run.stdout + run.stderr
        assert "work pool fcn: made, of type process" in run.stdout
        assert f"deployments: {len(NAMES)} registered" in run.stdout
        assert "automation fcn: without a heartbeat a run has crashed" in run.stdout
        with get_client(sync_client=True) as client:
            found = client.read_deployments()  # with those that other tests have made
            yield {each.name: each for each in found if each.work_pool_name == "fcn"}


@pytest.fixture
def client(prefect_server):
    with get_client(sync_client=True) as client:
        yield client


@pytest.mark.slow
def test_every_verb_is_deployed_by_its_module_path(deployments):
    entrypoints = {name: deployment.entrypoint for name, deployment in deployments.items()}
    assert {
        verb.replace("_", "-"): f"flows.{verb}.{verb}" for verb in VERBS
    }.items() <= entrypoints.items()
    assert list(entrypoints) == sorted(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_deployment_pulls_nothing_and_starts_nothing_by_itself(deployments, name):
    deployment = deployments[name]
    assert deployment.work_pool_name == "fcn"
    assert not deployment.pull_steps
    assert [schedule for schedule in deployment.schedules if schedule.active] == []
    assert deployment.description
    assert "fcn" in deployment.tags


@pytest.mark.parametrize("deployment", PREFECT_FILE["deployments"], ids=NAMES)
def test_what_is_deployed_has_the_hooks(deployment):
    module, _, name = deployment["entrypoint"].rpartition(".")
    flow = getattr(importlib.import_module(module), name)
    found = {hook: getattr(flow, f"{hook}_hooks") for hook in HOOKS}
    assert found == HOOKS


def test_what_uses_a_gpu_asks_for_one_in_its_own_queue(deployments):
    queues = {name: deployment.work_queue_name for name, deployment in deployments.items()}
    assert {name for name in queues if queues[name] == "gpu"} == ON_GPUS
    for name in ON_GPUS:
        variables = deployments[name].job_variables
        assert variables["resources"]["limits"]["nvidia.com/gpu"] == "1"
        [request] = variables["container_create_kwargs"]["device_requests"]
        assert request == {"driver": "nvidia", "count": 1, "capabilities": [["gpu"]]}


def test_scheduled_deployments_do_not_overtake_themselves(deployments):
    scheduled = {name for name, deployment in deployments.items() if deployment.schedules}
    assert scheduled == {"predict", "verify", "pipeline"}
    for name in scheduled - {"verify"}:
        assert deployments[name].global_concurrency_limit.limit == 1
        assert deployments[name].concurrency_options.collision_strategy == "ENQUEUE"


@pytest.mark.parametrize(
    ("name", "config", "reason"),
    [
        ("predict", {"images_per_shard": 0}, "config.images_per_shard.*less than the minimum of 1"),
        ("predict", {"mask_format": "tiff"}, "config.mask_format.*'tiff' is not one of"),
        ("predict", {"device": "gpu"}, "config.device"),
        ("predict", {"batchsize": 4}, "'batchsize' was unexpected"),
        ("train", {"stride": 5}, r"config.stride.*5 is not one of \[4, 8, 16, 32\]"),
    ],
)
def test_a_wrong_value_is_refused_on_submission_and_told_why(
    deployments, client, name, config, reason
):
    urls = dict.fromkeys(deployments[name].parameter_openapi_schema["required"], "/there")
    with pytest.raises(PrefectHTTPStatusError, match=reason) as refused:
        client.create_flow_run_from_deployment(
            deployments[name].id, parameters=urls | {"config": config}
        )
    assert refused.value.response.status_code == 409


def test_setting_up_again_keeps_what_is_there(deployments, client, capsys):
    module = script("set_up")
    pool = client.read_work_pool("fcn")
    limit = client.read_global_concurrency_limit_by_name("gpu:rack:0")
    assert limit.limit == 1
    module.make_work_pool(client, "fcn", "process", {"variables": {}, "job_configuration": {}})
    module.make_limit(client, "gpu:rack:0")
    assert client.read_work_pool("fcn") == pool
    assert client.read_global_concurrency_limit_by_name("gpu:rack:0") == limit
    assert capsys.readouterr().out.count("there, left as it is") == 2


def test_registering_again_keeps_what_the_owner_has_chosen(deployments, client):
    module = script("set_up")
    [schedule] = deployments["predict"].schedules
    urls = {"collection_url": "/in", "model_url": "/model", "output_url": "/out"}
    client.update_deployment(
        deployments["predict"].id,
        DeploymentUpdate(
            parameters=urls,
            tags=[*deployments["predict"].tags, "night"],
            concurrency_limit=3,
            schedules=[
                DeploymentScheduleUpdate(
                    schedule=schedule.schedule, active=True, parameters={"output_url": "/night"}
                )
            ],
        ),
    )
    before = module.deployed(client)
    module.python(
        *("-m", "prefect", "--no-prompt", "deploy", "--name", "predict"),
        *("--prefect-file", str(module.PREFECT_FILE)),
    )
    module.keep_choices(client, before)
    after = client.read_deployment_by_name("predict/predict")
    assert after.parameters == urls
    assert set(after.tags) == {"fcn", "prediction", "night"}
    assert after.global_concurrency_limit.limit == 3
    [kept] = after.schedules
    assert kept.active
    assert kept.parameters == {"output_url": "/night"}
    assert kept.schedule == schedule.schedule


def test_a_pool_of_another_type_is_not_taken_over(deployments, client):
    with pytest.raises(SystemExit, match="a work pool fcn of type process; set up with --type"):
        script("set_up").make_work_pool(client, "fcn", "docker", {})


@pytest.mark.parametrize("kind", ["docker", "kubernetes"])
def test_other_pools_take_the_same_deployments(client, kind):
    module = script("set_up")
    gpu = ["gpu:rack:0"] if kind == "docker" else []
    template = module.base_job_template(SimpleNamespace(type=kind, image="reg/fcn:1", gpu=gpu))
    module.make_work_pool(client, f"fcn-{kind}", kind, template)
    schema = client.read_work_pool(f"fcn-{kind}").base_job_template["variables"]
    defaults = {name: field.get("default") for name, field in schema["properties"].items()}
    assert defaults["image"] == "reg/fcn:1"
    assert defaults["env"] == ({"FCN_GPU_LIMIT": "gpu:rack:0"} if gpu else {})
    for deployment in PREFECT_FILE["deployments"]:
        variables = defaults | deployment["work_pool"].get("job_variables", {})
        validate(variables, schema, raise_on_error=True)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--type", "kubernetes", "--gpu", "a"], "Kubernetes itself gives each GPU to one run"),
        (["--type", "docker", "--gpu", "a", "--gpu", "b"], "take the first GPU"),
        (["--type", "lambda"], "invalid choice: 'lambda'"),
    ],
)
def test_options_that_do_not_go_together_are_refused(monkeypatch, capsys, options, reason):
    monkeypatch.setattr(sys, "argv", ["set_up.py", *options])
    with pytest.raises(SystemExit, match="2"):
        script("set_up").parse()
    assert reason in capsys.readouterr().err


def test_without_a_server_the_next_step_is_told(tmp_path):
    run = set_up(PREFECT_HOME=str(tmp_path), PREFECT_API_URL="")
    assert run.returncode == 1
    assert run.stderr == (
        "error: PREFECT_API_URL is not set; make ui starts a server on this machine\n"
    )


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


def test_a_worker_whose_server_is_away_says_what_it_waits_for_and_ends_when_told(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/api"
        worker = subprocess.Popen(
            [sys.executable, "deployments/worker.py", "--pool", "fcn"],
            cwd=ROOT,
            env=os.environ
            | {
                "PREFECT_API_URL": url.replace("//", "//admin:secret@"),
                "PREFECT_HOME": str(tmp_path),
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            line = worker.stderr.readline()
            worker.send_signal(signal.SIGTERM)
            rest = worker.communicate(timeout=10)[1]
        finally:
            worker.kill()
            worker.wait()
    assert re.fullmatch(
        rf"waiting for the Prefect server at {url} for 0 s: .*refused.*; start it there "
        r"\(prefect server start\), or correct PREFECT_API_URL\n",
        line,
    )
    assert rest == ""
    assert worker.returncode == 128 + signal.SIGTERM


def test_set_up_shows_no_credentials_of_a_server():
    shown = script("set_up").shown
    assert shown("http://admin:s3@cret@host:1/api: a@b") == "http://host:1/api: a@b"


def certificate(path: Path) -> Path:
    """A key and its certificate, which nobody trusts."""
    key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now).not_valid_after(now + timedelta(hours=1))
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    public = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
    path.write_bytes(private + public)
    return path


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_worker_waits_for_nobody_who_answers_otherwise_than_it_expects(tmp_path, scheme):
    """What speaks no HTTP, and a certificate of an authority that only Prefect's settings name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate(tmp_path / "pem"))

    def answer(listening):
        connection, _ = listening.accept()
        with connection:
            if scheme == "http":
                connection.recv(1000)
                connection.sendall(b"SSH-2.0\r\n")
                return
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=answer, args=(listening,))
        thread.start()
        port = listening.getsockname()[1]
        assert script("worker").no_answer(f"{scheme}://127.0.0.1:{port}/api/health") is None
        thread.join()
