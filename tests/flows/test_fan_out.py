"""On Ray and on Dask the output is the same bytes, and each goes on where another was killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prefect.settings import get_current_settings

from flows.predict import predict
from tasks import parts
from tasks.predict import PredictConfig, PredictError
from tests.flows.spread import make_given, objects

pytestmark = [pytest.mark.usefixtures("prefect_server"), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
# Other cores than this process or a worker has by itself: all have to take the run's.
HERE = PredictConfig(
    backend="torch", images_per_shard=2, max_failed=0.2, network_cores=2, shards_per_partition=2
)


@pytest.fixture(autouse=True)
def _ray_for_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No token in the home of whoever runs the tests; workers that are not the last in line."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_worker_niceness", "0")


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """URLs of thirteen images, one of them large, and a bad one, and of a model."""
    return make_given(tmp_path_factory.mktemp("given"))


@pytest.fixture(scope="module")
def wanted(given: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What a run in this process writes."""
    output = str(tmp_path_factory.mktemp("here") / "out")
    predict(*given, output, HERE)
    return objects(output)


def test_cores_of_the_network_decide_the_last_bits_of_large_images(
    given: tuple[str, str], wanted: dict[str, bytes], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    predict(*given, output, HERE.model_copy(update={"network_cores": 1}))
    found = objects(output)
    differing = {name for name, data in wanted.items() if found[name] != data}
    assert "parts/run=00000/part-00006.parquet" in differing  # or the tests below show nothing
    assert "parts/run=00000/part-00000.parquet" not in differing


def test_dask_writes_the_same_bytes_and_tells_of_shards_that_fail(
    given: tuple[str, str], wanted: dict[str, bytes], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    config = HERE.model_copy(update={"fan_out": "dask", "partitions_at_once": 2})
    obstacle = tmp_path / "out" / "parts" / "run=00000"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where a folder must be")
    with pytest.raises(
        PredictError,
        match=r"[34] of 4 partitions failed; first: shards-00000-00001: PredictError: 2 of 2 "
        r"shards failed; first: shard-00000: StoreError: ",
    ):
        predict(*given, output, config)
    obstacle.unlink()

    summary = predict(*given, output, config)

    assert objects(output) == wanted
    assert (summary.rows, summary.segmented, summary.failed) == (14, 14, 1)


def test_killed_on_dask_and_finished_on_ray(
    given: tuple[str, str], wanted: dict[str, bytes], tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    config = HERE.model_copy(update={"shards_per_partition": 1, "fan_out": "dask"})
    changed = config.model_dump(exclude_defaults=True)
    options = [f"--config.{name}={value}" for name, value in changed.items()]
    names = ("collection-url", "model-url", "output-url")
    urls = [f"--{name}={url}" for name, url in zip(names, (*given, output), strict=True)]
    command = [sys.executable, "-m", "flows", "predict", *urls, *options]
    settings = get_current_settings().to_environment_variables(exclude_unset=True)
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | settings, start_new_session=True
    ) as run:
        while run.poll() is None and not parts.numbers(output, 0):
            time.sleep(0.01)
        os.kill(run.pid, signal.SIGKILL)
    assert run.returncode == -signal.SIGKILL
    done = parts.numbers(output, 0)
    assert 0 < len(done) < 7

    summary = predict(*given, output, config.model_copy(update={"fan_out": "ray"}))

    assert objects(output) == wanted
    assert len(wanted) == 9  # manifest, seven parts, index
    assert 0 < summary.segmented <= 14 - 2 * len(done) + 2
    assert summary.stages["network"] > 0
