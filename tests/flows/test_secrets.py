"""Planted credentials are found nowhere: not in the server's database, not in what is written."""

import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec.config
import pytest
from prefect.settings import get_current_settings

from fcn.recipes import TrainConfig
from flows.command_line import main
from flows.evaluate import evaluate
from flows.ingest import ingest
from flows.predict import predict
from flows.promote import promote
from flows.train import train
from tasks import parts, stores
from tasks.predict import PredictConfig, plan_prediction
from tasks.stores import StoreError
from tests.tasks.pictures import encoded, pixels, put
from tests.tasks.sources import image_bytes, label, mask_bytes

pytestmark = pytest.mark.usefixtures("prefect_server")


class _Redirecting(BaseHTTPRequestHandler):
    """A site that sends everybody to a signed URL, where nothing is to be had."""

    secret = ""

    def do_GET(self) -> None:
        signed = self.path.startswith("/signed")
        self.send_response(403 if signed else 302)
        if not signed:
            self.send_header("Location", f"/signed/x?Signature={self.secret}")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One secret for each way in; S3 gets the first two, by environment and by fsspec's files."""
    found = {
        name: f"planted{uuid.uuid4().hex}"
        for name in ("environment", "options", "endpoint", "redirect", "header", "url")
    }
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", found["environment"])
    monkeypatch.setitem(
        fsspec.config.conf, "http", {"headers": {"Authorization": f"Bearer {found['header']}"}}
    )
    monkeypatch.setattr(_Redirecting, "secret", found["redirect"])
    return found


@pytest.fixture
def site(secrets: dict[str, str]) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Redirecting) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def fails(run: Callable[[], object], error: type[Exception] = StoreError) -> str:
    with pytest.raises(error) as caught:
        run()
    return str(caught.value)


def database() -> Path:
    """The SQLite file of the test session's server."""
    url = get_current_settings().server.database.connection_url
    assert url is not None
    return Path(url.get_secret_value().partition("///")[2])


def database_bytes(marks: list[str]) -> bytes:
    """Everything the server has stored, once the log has all of these."""
    deadline = time.monotonic() + 60
    with closing(sqlite3.connect(f"file:{database()}?mode=ro", uri=True)) as connection:
        while True:
            log = "\n".join(text for (text,) in connection.execute("SELECT message FROM log"))
            missing = [mark for mark in marks if mark not in log]
            if not missing:
                break
            assert time.monotonic() < deadline, missing
            time.sleep(0.5)
        dump = "\n".join(connection.iterdump()).encode()
    files = database().parent.glob(f"{database().name}*")  # with the journal beside it
    return dump + b"".join(path.read_bytes() for path in files)


def test_no_credential_is_kept_anywhere(
    s3: Any,
    secrets: dict[str, str],
    site: str,
    tmp_path: Path,
    rng: Any,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(plan_prediction, "retries", 0)
    bucket = str(s3.new_bucket())
    put(
        f"{bucket}/source",
        {f"images/{n}.png": image_bytes(n, (32, 32)) for n in range(6)}
        | {f"masks/{n}.png": mask_bytes(label((32, 32))) for n in range(6)}
        | {"classes.txt": b"sky\nroad\ntree\n"},
    )
    image = encoded(pixels(rng))
    put(f"{bucket}/in", {"a.png": image})
    listed = f"url,key\nin/a.png,a.png\n{site}/moved.png,moved.png\n"
    put(bucket, {"list.csv": listed.encode()})
    small = TrainConfig(
        backbone="squeezenet1_1", init="none", epochs=1, batch_size=4, crop_size=(32, 32),
        num_workers=0,
    )  # fmt: skip

    with monkeypatch.context() as patch:
        options = {"key": "planted", "secret": secrets["options"]}
        patch.setitem(fsspec.config.conf, "s3", options)
        ingest(f"{bucket}/source", f"{bucket}/set")
        trained = train(f"{bucket}/set", f"{bucket}/run", small)
        evaluate(f"{bucket}/set", trained.model_url, f"{bucket}/report")
        promote(f"{bucket}/set", trained.model_url, f"{bucket}/models")
        lenient = PredictConfig(max_failed=1.0)
        predict(f"{bucket}/list.csv", f"{bucket}/models/serving.json", f"{bucket}/out", lenient)

        moved = f"{site}/model.safetensors"
        redirected = small.model_copy(update={"init": moved})
        told = [
            fails(lambda: train(f"{bucket}/set", f"{bucket}/no", redirected)),
            fails(lambda: predict(f"{bucket}/in", moved, f"{bucket}/out2")),
        ]
        # a store that is out, and has a key in its address
        broken = options | {
            "endpoint_url": f"http://127.0.0.1:1/gateway?key={secrets['endpoint']}",
            "config_kwargs": {"retries": {"max_attempts": 0}, "connect_timeout": 1},
        }
        patch.setitem(fsspec.config.conf, "s3", broken)
        patch.setattr(fsspec.get_filesystem_class("s3"), "retries", 1)
        told += [
            fails(lambda: evaluate(f"{bucket}/set", trained.model_url, str(tmp_path / "r"))),
            fails(lambda: ingest(f"{bucket}/source", str(tmp_path / "set"))),
        ]
    url = f"https://me:{secrets['url']}@host/x?X-Amz-Signature={secrets['url']}"
    for verb, options_of_verb in (
        ("predict", ["--collection-url", url, "--model-url", "m", "--output-url", "o"]),
        ("train", ["--dataset-url", "d", "--run-url", "r", "--config.init", url]),
        ("ingest", ["--source-url", "s", "--dataset-url", "d", "--classes", url]),
    ):
        assert main([verb, *options_of_verb]) == 2

    [failed] = parts.failures(f"{bucket}/out", 0, 9)
    assert (failed["key"], failed["error_class"]) == ("moved.png", "ReadFailed")
    entries = list(stores.list_entries(f"{bucket}/"))
    shown = capfd.readouterr()
    places = {
        "the database": database_bytes([text[:40] for text in told]),
        "the terminal": (shown.out + shown.err).encode(),
        "the log": caplog.text.encode(),
        **{entry.key: stores.read_bytes(entry.url) for entry in entries},
        **{str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()},
    }
    assert len(entries) > 20
    assert b"Custom endpoint" in places["the database"]
    found = [
        f"{name} in {place}"
        for place, data in places.items()
        for name, secret in secrets.items()
        if secret.encode() in data
    ]
    assert found == []
