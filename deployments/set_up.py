"""Makes everything that flow runs need on a Prefect server: ``python deployments/set_up.py``.

The work pool, the limits of GPUs, every deployment, the automations. Run it again after an
update: deployments are brought up to date, and what their owner has chosen since is kept.
``PREFECT_API_URL`` names the server.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import (
    DeploymentScheduleUpdate,
    DeploymentUpdate,
    GlobalConcurrencyLimitCreate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.responses import DeploymentResponse
from prefect.exceptions import ObjectNotFound
from prefect.settings import (
    PREFECT_CLIENT_RETRY_EXTRA_CODES,
    get_current_settings,
    temporary_settings,
)
from prefect.workers.process import ProcessWorker

ROOT = Path(__file__).resolve().parents[1]
PREFECT_FILE = ROOT / "deployments" / "prefect.yaml"
TYPES = ("process", "docker", "kubernetes")
GPU_LIMIT = "FCN_GPU_LIMIT"  # of tasks/gpu.py

PATIENCE = 60.0
"""Seconds that a server has to answer."""

BUSY = "500"
"""Status with which a server answers whose SQLite is locked for a moment: asked again."""


def main() -> None:
    """Sets up the server that the settings name."""
    arguments = parse()
    server = get_current_settings().api.url
    if not server:
        fail("PREFECT_API_URL is not set; make ui starts a server on this machine")
    print(f"Setting up {shown(server)}")
    template = base_job_template(arguments)
    retries = temporary_settings({PREFECT_CLIENT_RETRY_EXTRA_CODES: BUSY})
    with retries, get_client(sync_client=True) as client:
        wait_for(client, server)
        for name in work_pools():
            make_work_pool(client, name, arguments.type, template)
        for name in arguments.gpu:
            make_limit(client, name)
        before = deployed(client)
        register_deployments()
        keep_choices(client, before)
        install_automations()


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--type",
        choices=TYPES,
        default="process",
        help="of the work pool: runs are processes of the worker (default), Docker containers, "
        "or Kubernetes jobs",
    )
    parser.add_argument(
        "--image",
        default="fcn-flows",
        help="what deployments/Dockerfile was built as, for Docker and Kubernetes (fcn-flows)",
    )
    parser.add_argument(
        "--gpu",
        action="append",
        default=[],
        metavar="NAME",
        help=f"a GPU that takes one run at a time, such as gpu:rack-3:0; name it in {GPU_LIMIT} "
        "where you start its worker; may be given several times",
    )
    arguments = parser.parse_args()
    if arguments.gpu and arguments.type == "kubernetes":
        parser.error("--gpu: Kubernetes itself gives each GPU to one run; leave it out")
    if len(arguments.gpu) > 1 and arguments.type == "docker":
        parser.error(
            "--gpu: containers of one pool take the first GPU; for more of them start a worker "
            "of type process for each"
        )
    return arguments


def base_job_template(arguments: argparse.Namespace) -> dict[str, Any]:
    """How a new pool starts a flow run."""
    if arguments.type == "process":
        return ProcessWorker.get_default_base_job_template()
    file = ROOT / "deployments" / f"{arguments.type}-job.json"
    template: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    variables = template["variables"]["properties"]
    variables["image"]["default"] = arguments.image
    if arguments.gpu:
        variables["env"]["default"] = {GPU_LIMIT: arguments.gpu[0]}
    return template


def wait_for(client: SyncPrefectClient, server: str) -> None:
    """Returns when the server answers: it may have been started just now."""
    end = time.monotonic() + PATIENCE
    told = False
    while error := client.api_healthcheck():
        if time.monotonic() > end:
            fail(shown(f"{server} does not answer: {error}"))
        if not told:
            print(shown(f"waiting for it, {PATIENCE:.0f} s at most: {error}"), flush=True)
            told = True
        time.sleep(1)


def described() -> list[dict[str, Any]]:
    """The deployments as prefect.yaml has them."""
    content = yaml.safe_load(PREFECT_FILE.read_text(encoding="utf-8"))
    deployments: list[dict[str, Any]] = content["deployments"]
    return deployments


def work_pools() -> list[str]:
    """Names of the pools that prefect.yaml deploys to."""
    return sorted({deployment["work_pool"]["name"] for deployment in described()})


def deployed(client: SyncPrefectClient) -> dict[str | None, DeploymentResponse]:
    """The deployments of prefect.yaml that are on the server, by entrypoint."""
    names = [deployment["name"] for deployment in described()]
    named = DeploymentFilter(name=DeploymentFilterName(any_=names))
    return {found.entrypoint: found for found in client.read_deployments(deployment_filter=named)}


def make_work_pool(
    client: SyncPrefectClient, name: str, kind: str, template: dict[str, Any]
) -> None:
    """Makes a pool, or leaves the one that is there as its owner has set it."""
    try:
        there = client.read_work_pool(name)
    except ObjectNotFound:
        pool = WorkPoolCreate(name=name, type=kind, base_job_template=template)
        client.create_work_pool(pool)
        print(f"work pool {name}: made, of type {kind}")
        return
    if there.type != kind:
        fail(
            f"there is a work pool {name} of type {there.type}; set up with --type {there.type}, "
            f"or remove it first: prefect work-pool delete {name}"
        )
    print(f"work pool {name}: there, left as it is")


def make_limit(client: SyncPrefectClient, name: str) -> None:
    """Makes a limit with one place, or leaves the one that is there."""
    try:
        client.read_global_concurrency_limit_by_name(name)
    except ObjectNotFound:
        client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=name, limit=1))
        print(f"limit {name}: made, one run at a time")
    else:
        print(f"limit {name}: there, left as it is")


def register_deployments() -> None:
    """Registers every deployment of prefect.yaml; ends here when one cannot be."""
    deploy = ("--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--all")
    output = python("-m", "prefect", *deploy)
    print(f"deployments: {output.count('successfully created')} registered")


def keep_choices(
    client: SyncPrefectClient, before: Mapping[str | None, DeploymentResponse]
) -> None:
    """Gives deployments back what their owner had chosen, which registering them has reset.

    These are parameters, schedules, tags and the limit of runs at once.
    """
    for entrypoint, now in deployed(client).items():
        if then := before.get(entrypoint):
            wanted = choices(then, also=now.tags)
            if wanted != choices(now):
                client.update_deployment(now.id, wanted)
    if before:
        print("parameters, schedules, tags and limits of deployments: kept")


def choices(deployment: DeploymentResponse, also: Iterable[str] = ()) -> DeploymentUpdate:
    """What its owner may have chosen of a deployment; ``also`` are more tags."""
    limit = deployment.global_concurrency_limit
    fields = {"schedule", "active", "max_scheduled_runs", "parameters", "slug"}
    return DeploymentUpdate(
        parameters=deployment.parameters,
        schedules=[
            DeploymentScheduleUpdate(**schedule.model_dump(include=fields))
            for schedule in deployment.schedules
        ],
        tags=sorted({*deployment.tags, *also}),
        concurrency_limit=limit.limit if limit else None,
    )


def install_automations() -> None:
    """Makes the automations that keep the record true; see automations.py."""
    import automations  # noqa: PLC0415 - beside this script; it imports the flows

    try:
        names = automations.install_automations(os.environ.get("FCN_WEBHOOK_URL"))
    except Exception as error:  # noqa: BLE001 - whatever it is, its text may hold a password
        fail(shown(f"the automations cannot be made: {type(error).__name__}: {error}"))
    for name in names:
        print(f"automation {name}")


def python(*command: str) -> str:
    """Runs Python in the root of the checkout; returns what it said, or ends here with it."""
    outcome = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env=os.environ | {"PREFECT_CLIENT_RETRY_EXTRA_CODES": BUSY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if outcome.returncode:
        fail(f"python {' '.join(command)} failed:\n{outcome.stdout}")
    return outcome.stdout


def shown(text: str) -> str:
    """A text without user and password in its URLs."""
    return re.sub(r"//[^/\s]*@", "//", text)


def fail(reason: str) -> NoReturn:
    """Ends here, with one line that says why."""
    sys.exit(f"error: {reason}")


if __name__ == "__main__":
    main()
