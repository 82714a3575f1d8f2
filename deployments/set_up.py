"""Makes everything that flow runs need on a Prefect server: ``python deployments/set_up.py``.

The work pool, the limits of GPUs, and every deployment. Run it again after an update: what is
there is kept, deployments are brought up to date. ``PREFECT_API_URL`` names the server.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from prefect import get_client
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
from prefect.exceptions import ObjectNotFound
from prefect.settings import get_current_settings
from prefect.workers.process import ProcessWorker

ROOT = Path(__file__).resolve().parents[1]
PREFECT_FILE = ROOT / "deployments" / "prefect.yaml"
TYPES = ("process", "docker", "kubernetes")
GPU_LIMIT = "FCN_GPU_LIMIT"  # of tasks/gpu.py


def main() -> None:
    """Sets up the server that the settings name."""
    arguments = parse()
    server = get_current_settings().api.url
    if not server:
        fail("PREFECT_API_URL is not set; make ui starts a server on this machine")
    print(f"Setting up {server}")
    template = base_job_template(arguments)
    with get_client(sync_client=True) as client:
        if error := client.api_healthcheck():
            fail(f"{server} does not answer: {error}")
        for name in work_pools():
            make_work_pool(client, name, arguments.type, template)
        for name in arguments.gpu:
            make_limit(client, name)
    register_deployments()


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


def work_pools() -> list[str]:
    """Names of the pools that prefect.yaml deploys to."""
    deployments = yaml.safe_load(PREFECT_FILE.read_text(encoding="utf-8"))["deployments"]
    return sorted({deployment["work_pool"]["name"] for deployment in deployments})


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
    command = ["--no-prompt", "deploy", "--prefect-file", str(PREFECT_FILE), "--all"]
    outcome = subprocess.run(
        [sys.executable, "-m", "prefect", *command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if outcome.returncode:
        fail(f"prefect {' '.join(command)} failed:\n{outcome.stdout}")
    print(f"deployments: {outcome.stdout.count('successfully created')} registered")


def fail(reason: str) -> NoReturn:
    """Ends here, with one line that says why."""
    sys.exit(f"error: {reason}")


if __name__ == "__main__":
    main()
