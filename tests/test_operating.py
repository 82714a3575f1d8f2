"""What docs/operating.md tells the operator to type, typed: a server, a worker, a run."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from prefect.blocks.system import Secret
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from tasks.scenes import make_scenes

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "operating.md").read_text(encoding="utf-8")
CHANGE_THE_CHECKOUT = {"make install", "source .venv/bin/activate", "git pull"}


def commands(*, needs):
    """The commands that need what the tests have not, or the others, in their order."""
    found = []
    for section in PAGE.split("\n## "):
        for block in re.finditer(r"^```console\n(.*?)^```$", section, re.MULTILINE | re.DOTALL):
            if ("*Needs " in section[: block.start()]) == needs:
                found += re.findall(r"^\$ (.+)$", block[1], re.MULTILINE)
    return found


def script(port):
    """What is typed, as one script; workers go on in the background, as the server does."""
    lines = ["set -e -o pipefail", "trap 'kill $(jobs -p) || true' EXIT"]
    for command in commands(needs=False):
        if command in CHANGE_THE_CHECKOUT:
            continue
        lines.append(f"echo {json.dumps('$ ' + command.split()[0])}")
        lines.append(
            command.replace(":4200", f":{port}") + " &" * ("deployments/worker.py" in command)
        )
    return "\n".join(lines)


@pytest.fixture(scope="module")
def place(tmp_path_factory, prefect_server):
    """The checkout after all of it; and what was said."""
    place = tmp_path_factory.mktemp("operating")
    for name in ("deployments", "pyproject.toml", "constraints.txt"):
        (place / name).symlink_to(ROOT / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        make_scenes(".", num_train=3, num_val=1, num_unlabelled=1)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PREFECT_HOME": str(place / "home"),
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_WORKER_QUERY_SECONDS": "1",  # 10 by default, which the run would wait
        "PYTHONPATH": str(ROOT),
    }
    (place / "home").mkdir()
    shutil.copyfile(prefect_server, place / "home" / "prefect.db")
    with (place / "said").open("w", encoding="utf-8") as said:
        shell = subprocess.Popen(
            ["bash", "-c", script(port)],
            cwd=place,
            env=environment,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = shell.wait(560)
        finally:
            with suppress(ProcessLookupError):  # what has not ended with it
                os.killpg(shell.pid, signal.SIGKILL)
            shell.wait()
    words = (place / "said").read_text(encoding="utf-8")
    assert status == 0, words
    return place, words


def test_five_commands_lead_to_the_first_deployment():
    first = re.search(r"^```console\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)[1]
    assert len(first.splitlines()) == 5
    assert first.splitlines()[-1] == "$ python deployments/set_up.py"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_do_what_the_page_says(place):
    place, said = place
    assert "work pool fcn: made, of type process" in said
    assert "limit gpu:rack-3:0: made, one run at a time" in said
    assert "parameters, schedules, tags and limits of deployments: kept" in said
    assert json.loads((place / "dataset" / "dataset.json").read_text("utf-8"))["splits"]
    with sqlite3.connect(place / "prefect-backup.db") as backup:
        states = backup.execute("SELECT state_type FROM flow_run").fetchall()
    assert states == [("COMPLETED",)]


def test_what_needs_a_daemon_or_a_cluster_is_marked():
    tools = {command.split()[0] for command in commands(needs=True)}
    assert {"docker", "kubectl"} <= tools
    assert not [command for command in commands(needs=False) if re.match("docker|kubectl", command)]


def test_every_path_named_is_there():
    named = set(re.findall(r"\bdeployments/[\w.-]+", PAGE)) - {"deployments/.env"}
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_sizing_is_what_was_measured():
    measured = (ROOT / "docs" / "benchmarks" / "prediction.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| FCN-8s on (\w+) \| (\w+) \| ([\d.]+) \| ([\d.]+) \|$", PAGE, re.M)
    assert len(rows) == 4
    for network, store, rate, hours in rows:
        trunk = {"VGG16": "vgg16", "SqueezeNet": "squeezenet1_1"}[network]
        assert re.search(rf"^\| {trunk} \| {store} \| .*? \| {rate} \(", measured, re.M)
        assert float(hours) == pytest.approx(1e6 / float(rate) / 3600, rel=0.005)


def test_a_file_of_fsspec_gives_the_key_and_the_endpoint(s3, tmp_path):
    [text] = re.findall(r'^\{"s3": .*\}$', PAGE, re.MULTILINE)
    settings = json.loads(text)
    settings["s3"] = {"key": "test", "secret": "test", "endpoint_url": s3.endpoint}
    (tmp_path / "s3.json").write_text(json.dumps(settings), encoding="utf-8")
    without = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    url = f"{s3.new_bucket()}/a"
    code = f"from tasks import stores; stores.write_bytes({url!r}, b'1')"
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=without | {"FSSPEC_CONFIG_DIR": str(tmp_path), "AWS_EC2_METADATA_DISABLED": "true"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert run.returncode == 0, run.stderr


def test_a_secret_block_is_looked_up_when_a_run_starts(prefect_server):
    [text] = re.findall(r'^\{"AWS_ACCESS_KEY_ID": .*\}$', PAGE, re.MULTILINE)
    Secret(value="planted").save("s3-secret")
    template = ProcessWorker.get_default_base_job_template()
    job = asyncio.run(
        ProcessJobConfiguration.from_template_and_values(template, {"env": json.loads(text)})
    )
    assert job.env == {"AWS_ACCESS_KEY_ID": "fcn", "AWS_SECRET_ACCESS_KEY": "planted"}
