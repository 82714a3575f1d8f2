"""Fixtures for every floor: one Prefect server, one S3 endpoint, real data, seeded chance."""

import itertools
import os
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

import certifi
import numpy as np
import pytest

# Prefect reads its settings when it is imported, so they stand here and not in a fixture.
# Tests never touch the state of the person who runs them.
_PREFECT_HOME = tempfile.mkdtemp(prefix="fcn-flows-prefect-")
os.environ |= {
    "DO_NOT_TRACK": "1",
    "PREFECT_HOME": _PREFECT_HOME,
    "PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW": "ignore",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}
for name in ("PREFECT_API_URL", "PREFECT_API_KEY", "PREFECT_PROFILE"):
    os.environ.pop(name, None)

# Each of Prefect's clients reads its certificates, also for a server without TLS, and each flow
# run makes several: all of certifi's take 30 ms, one takes none.
_CERTIFICATE = Path(_PREFECT_HOME, "certificate.pem")
_first, _end, _ = Path(certifi.where()).read_text("utf-8").partition("-----END CERTIFICATE-----\n")
_CERTIFICATE.write_text(_first + _end, encoding="utf-8")
os.environ["PREFECT_API_SSL_CERT_FILE"] = str(_CERTIFICATE)

_DATA = Path(
    os.environ.get("FCN_DATA", Path(__file__).resolve().parents[1].parent / "shared" / "data")
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with a slow test come first: the last one to end leaves the other core idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_unconfigure() -> None:
    """Removes the Prefect home of this test session."""
    shutil.rmtree(_PREFECT_HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def prefect_server(pytestconfig: pytest.Config) -> Iterator[Path]:
    """One Prefect server with an empty database for the whole session (up to 30 s to start).

    Gives a file with a copy of that database, as it was when the server had started: another
    server that starts with it has no tables to make, which takes eight seconds. The next session
    finds it in pytest's cache.

    Flow runs of this process send no heartbeats: each would wait a second for their thread when
    it ends. Other processes do as pyproject.toml says.
    """
    import prefect
    from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY as HEARTBEATS
    from prefect.settings import PREFECT_SERVER_DATABASE_CONNECTION_URL as DATABASE
    from prefect.settings import temporary_settings
    from prefect.testing import utilities

    place = Path(tempfile.mkdtemp())
    empty = place / "empty.db"
    cache = getattr(pytestconfig, "cache", None)  # not with -p no:cacheprovider
    with suppress(OSError):  # of a checkout that cannot be written
        empty = cache.mkdir("prefect") / f"empty-{prefect.__version__}.db" if cache else empty
    if empty.exists():
        shutil.copyfile(empty, place / "prefect-test.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utilities, "mkdtemp", lambda: str(place))  # which the harness removes
        harness = utilities.prefect_test_harness(server_startup_timeout=120)
        with harness, temporary_settings({HEARTBEATS: None}):
            copy = Path(_PREFECT_HOME, "empty.db")
            own = DATABASE.value().removeprefix("sqlite+aiosqlite:///")
            with closing(sqlite3.connect(own)) as source, closing(sqlite3.connect(copy)) as target:
                source.backup(target)
            if not empty.exists():
                with suppress(OSError):
                    mine = empty.with_name(f"{os.getpid()}.db")  # the other process writes its own
                    shutil.copyfile(copy, mine)
                    mine.replace(empty)
            yield copy


@dataclass(frozen=True)
class S3:
    """An S3 endpoint on this machine, the one behind plain ``s3://`` URLs during tests."""

    endpoint: str
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def new_bucket(self) -> str:
        """URL of a new, empty bucket, ``s3://name``."""
        import boto3

        name = f"bucket-{next(self._numbers)}"
        boto3.client("s3").create_bucket(Bucket=name)
        return f"s3://{name}"


@pytest.fixture(scope="session")
def s3() -> Iterator[S3]:
    """An S3 endpoint that this process and its children use for every ``s3://`` URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    with pytest.MonkeyPatch.context() as environment:
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", "test")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "test")
        environment.setenv("AWS_DEFAULT_REGION", "us-east-1")
        environment.setenv("AWS_EC2_METADATA_DISABLED", "true")
        environment.setenv("AWS_CONFIG_FILE", os.devnull)
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
        environment.setenv("AWS_ENDPOINT_URL", endpoint)
        yield S3(endpoint)
    server.stop()


def _real_data(name: str) -> Path:
    path = _DATA / name
    if not path.exists():
        pytest.skip(f"no real data at {path}; FCN_DATA names the directory that holds {name}")
    return path


@pytest.fixture(scope="session")
def camvid_dir() -> Path:
    """CamVid in the SegNet layout: train, trainannot, val, valannot."""
    return _real_data("camvid")


@pytest.fixture(scope="session")
def coco_dir() -> Path:
    """128 COCO photographs with VOC masks: JPEGImages, SegmentationClass."""
    return _real_data("coco128_voc21")


@pytest.fixture(scope="session")
def squeezenet_npz() -> Path:
    """SqueezeNet v1.1 weights, ImageNet, in the Caffe convention."""
    directory = _real_data("squeezenet")
    return next(directory.glob("*.npz"))


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Random numbers seeded by the name of the test: the same on every run."""
    return np.random.default_rng(zlib.crc32(request.node.nodeid.encode()))
