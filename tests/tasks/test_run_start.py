"""What every flow does first: no credential is kept, and plain modules are heard."""

import importlib
import inspect
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from prefect import flow, get_run_logger
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId

from fcn.recipes import TrainConfig
from flows.command_line import VERBS, main
from tasks.predict_config import PredictConfig
from tasks.run_start import start_run, texts_of
from tasks.stores import StoreError

SECRET = "https://me:hidden@host/x?sig=hidden"


def url_parameters() -> list[tuple[str, str]]:
    """Verb and name of every parameter that is a URL."""
    return [
        (verb, name)
        for verb in VERBS
        for name in inspect.signature(_function(verb)).parameters
        if name.endswith("_url")
    ]


def _function(verb: str) -> Any:
    return getattr(importlib.import_module(f"flows.{verb}"), verb).fn


@pytest.mark.parametrize(("verb", "parameter"), url_parameters())
def test_every_flow_refuses_credentials_before_anything_else(
    verb: str, parameter: str, tmp_path: Path
) -> None:
    given = {
        name: str(tmp_path / name)
        for name, one in inspect.signature(_function(verb)).parameters.items()
        if one.default is inspect.Parameter.empty
    }
    with pytest.raises(StoreError, match="https://host/x was given with a user name") as caught:
        _function(verb)(**(given | {parameter: SECRET}))
    assert "hidden" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_credentials_in_a_setting_are_found() -> None:
    assert SECRET in texts_of((1, None, TrainConfig(init=SECRET)))
    assert list(texts_of({"a": ["x", ("y",)], "b": {"c": "z"}})) == ["x", "y", "z"]


@pytest.mark.parametrize(
    ("verb", "settings"), [("predict", "config"), ("pipeline", "predict_config")]
)
def test_a_flow_refuses_credentials_in_its_settings(
    verb: str, settings: str, tmp_path: Path
) -> None:
    names = ("source_url", "collection_url", "work_url", "model_url", "output_url")
    function = _function(verb)
    given = {n: str(tmp_path / n) for n in inspect.signature(function).parameters if n in names}
    config = PredictConfig(fan_out="dask", cluster="tls://me:hidden@host:8786")
    with pytest.raises(StoreError, match="tls://host:8786 was given with a user name"):
        function(**given, **{settings: config})
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_refuses_before_a_run_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--dataset-url", "a", "--run-url", "b", "--config.init", SECRET]
    assert main(["train", *options]) == 2
    shown = capsys.readouterr()
    assert "error: https://host/x was given with a user name" in shown.err
    assert "hidden" not in shown.err + shown.out


def lines(flow_run_id: Any, count: int) -> list[Any]:
    """The log lines of a run, once there are so many."""
    deadline = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while True:
            wanted = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[flow_run_id]))
            found = client.read_logs(log_filter=wanted)
            if len(found) >= count:
                return found
            assert time.monotonic() < deadline, [line.message for line in found]
            time.sleep(0.2)


def test_plain_modules_are_heard_from_any_thread_and_no_line_shows_a_credential(
    prefect_server: None,
) -> None:
    @flow
    def talkative() -> None:
        start_run()
        start_run()  # a subflow does it again; a line still comes once
        get_run_logger().info("reading %s", SECRET)
        logging.getLogger("fcn.sample").info("a plain line")
        logging.getLogger("tasks.sample").debug("too fine")
        thread = threading.Thread(
            target=logging.getLogger("tasks.sample").warning, args=("of a thread: %s", SECRET)
        )
        thread.start()
        thread.join()
        try:
            {}[SECRET]
        except KeyError:
            get_run_logger().exception("failed")

    state = talkative(return_state=True)
    found = [line.message for line in lines(state.state_details.flow_run_id, 5)]
    assert found.count("a plain line") == 1
    assert found.count("of a thread: https://host/x") == 1
    assert found.count("reading https://host/x") == 1
    assert any("KeyError: 'https://host/x'" in line for line in found)
    assert "hidden" not in "".join(found)
    assert "too fine" not in found
