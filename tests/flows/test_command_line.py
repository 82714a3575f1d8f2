"""The command line on a sample flow: what every verb shares."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from prefect import flow
from prefect.settings import get_current_settings
from pydantic import BaseModel, ConfigDict, Field, model_validator

from fcn.errors import CheckpointError
from flows.command_line import VERBS, UsageError, main, overview, parse, run_flow


class SampleConfig(BaseModel):
    """Settings of the sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    epochs: int = Field(10, ge=1, description="Passes over 100 % of the split.")
    crop_size: tuple[int, int] | None = Field(None, description="Height and width of a crop.")
    device: Literal["auto", "cpu"] = Field("auto", description="Where the net runs.")
    sinks: tuple[Literal["parquet", "png"], ...] = Field(("parquet",), description="Outputs.")
    include: tuple[str, ...] = Field((), description="Patterns.")
    learning_rate: float | None = Field(0.1, description="Step.")
    init: str = Field("imagenet", description="First weights.")
    resume: bool = Field(True, description="Go on.")

    @model_validator(mode="after")
    def _has_a_sink(self):
        if not self.sinks:
            raise ValueError("sinks is empty; name parquet or png")
        return self


@dataclass(frozen=True, kw_only=True)
class Outcome:
    num_images: int
    mean_iu: float
    model_url: str


@flow(log_prints=True)
def sample(
    collection_url: str,
    classes: list[str] | str | None = None,
    layout: Literal["auto", "voc"] = "auto",
    limit: int | None = 7,
    config: SampleConfig = SampleConfig(epochs=20),  # noqa: B008
) -> Outcome:
    """Counts what a collection holds.

    It writes nothing.

    Args:
        collection_url: Where the images are.
        classes: Names of the classes.
        layout: How files lie.
        limit: Most images, about 50 % of them.
        config: Settings of the sample.
    """
    if collection_url == "broken":
        raise CheckpointError("no safetensors file at broken")
    if collection_url == "bug":
        raise ZeroDivisionError("a bug")
    if collection_url == "slow":
        print("waiting")
        time.sleep(60)
    return Outcome(num_images=3, mean_iu=0.123456, model_url="m.safetensors")


ROOT = Path(__file__).resolve().parents[2]
URL = ["--collection-url", "s3://bucket/a=b,c"]


def test_defaults_are_those_of_the_signature():
    parameters = parse(sample, URL)
    assert parameters == {
        "collection_url": "s3://bucket/a=b,c",
        "classes": None,
        "layout": "auto",
        "limit": 7,
        "config": SampleConfig(epochs=20),
    }


@pytest.mark.parametrize("spelling", ["--collection-url", "--collection_url"])
def test_hyphen_and_underscore_name_the_same_option(spelling):
    assert parse(sample, [spelling, "a_b-c"])["collection_url"] == "a_b-c"
    assert parse(sample, [f"{spelling}=a_b-c"])["collection_url"] == "a_b-c"


def test_a_nested_setting_keeps_the_other_defaults_of_the_flow():
    config = parse(sample, [*URL, "--config.learning_rate", "1e-3"])["config"]
    assert config == SampleConfig(epochs=20, learning_rate=0.001)


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        (["--config.crop-size", "240,320"], "crop_size", (240, 320)),
        (["--config.crop-size", "240", "--config.crop-size", "320"], "crop_size", (240, 320)),
        (["--config.crop-size", "None"], "crop_size", None),
        (["--config.learning-rate", "None"], "learning_rate", None),
        (["--config.init", "none"], "init", "none"),
        (["--config.sinks", "parquet,png"], "sinks", ("parquet", "png")),
        (["--config.include", "a/*.jpg"], "include", ("a/*.jpg",)),
        (["--config.resume", "false"], "resume", False),
        (["--config.device", "cpu"], "device", "cpu"),
    ],
)
def test_values_become_what_the_field_holds(options, name, expected):
    assert getattr(parse(sample, [*URL, *options])["config"], name) == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--classes", "classes.txt"], "classes.txt"),
        (["--classes", "sky,road"], ["sky", "road"]),
        (["--classes", "sky", "--classes", "road"], ["sky", "road"]),
        ([], None),
    ],
)
def test_one_class_source_is_a_text_and_several_are_a_list(options, expected):
    assert parse(sample, [*URL, *options])["classes"] == expected


def test_the_environment_gives_no_parameter(monkeypatch):
    monkeypatch.setenv("LIMIT", "99")
    monkeypatch.setenv("CONFIG", '{"epochs": 99}')
    parameters = parse(sample, URL)
    assert parameters["limit"] == 7
    assert parameters["config"].epochs == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            [*URL, "--config.epoch", "2"],
            r"unknown option --config.epoch \(did you mean --config.epochs\?\); --help lists",
        ),
        ([*URL, "--collection", "x"], r"unknown option --collection \(did you mean"),
        ([*URL, "--zzz"], r"^unknown option --zzz; --help lists them all$"),
        ([], "required: --collection-url"),
        ([*URL, "--limit"], "--limit: expected one argument"),
        ([*URL, "stray"], "unrecognized arguments: stray"),
        (
            [*URL, "--config.epochs", "0"],
            "^--config.epochs: Input should be greater than or equal to 1, found '0'$",
        ),
        (
            [*URL, "--config.epochs", "x", "--layout", "coco"],
            "^--layout: Input should be 'auto' or 'voc', found 'coco'; --config.epochs: .* integer",
        ),
        ([*URL, "--config.sinks", "[]"], "^--config: sinks is empty; name parquet or png$"),
        ([*URL, "--config.crop-size", "3"], "^--config.crop-size: Field required, found"),
    ],
)
def test_bad_arguments_say_which_option_and_why(options, message):
    with pytest.raises(UsageError, match=message):
        parse(sample, options)


def test_help_comes_from_signature_docstring_and_fields(capsys):
    assert run_flow(sample, ["--help"]) == 0
    page = capsys.readouterr().out
    assert "Counts what a collection holds.\n\nIt writes nothing." in page
    assert "Where the images are. (required)" in page
    assert "about 50 % of them. (default: 7)" in " ".join(page.split())
    assert "Passes over 100 % of the split." in page
    assert "{auto,voc}" in page
    assert "Args:" not in page


def test_a_run_prints_its_result(prefect_server, capfd):
    assert run_flow(sample, URL) == 0
    assert capfd.readouterr().out == "num images: 3\nmean iu: 0.1235\nmodel url: m.safetensors\n"


def test_a_failed_run_is_one_line(prefect_server, capfd):
    assert run_flow(sample, ["--collection-url", "broken"]) == 1
    errors = capfd.readouterr().err
    assert errors.endswith("error: no safetensors file at broken\n")
    assert "Traceback" not in errors


def test_a_bug_keeps_its_traceback(prefect_server):
    with pytest.raises(ZeroDivisionError):
        run_flow(sample, ["--collection-url", "bug"])


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_run_ends_with_the_status_of_its_signal(prefect_server, number, status):
    code = (
        "import signal, sys, types; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from tests.flows.test_command_line import sample; from flows.command_line import main;"
        "sys.modules['flows.predict'] = types.SimpleNamespace(predict=sample);"
        "sys.exit(main(['predict', '--collection-url', 'slow']))"
    )
    run = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | get_current_settings().to_environment_variables(exclude_unset=True),
        stderr=subprocess.PIPE,
        text=True,
    )
    with run:
        assert any("waiting" in line for line in run.stderr)
        run.send_signal(number)
        _, errors = run.communicate(timeout=30)
    assert run.returncode == status, errors
    assert "Traceback" not in errors


def test_the_overview_names_every_verb(capsys):
    assert main([]) == 0
    page = capsys.readouterr().out
    assert page == overview() + "\n"
    for verb in VERBS:
        assert f"  {verb} " in page


@pytest.mark.parametrize("verb", ["train_staged", "train-staged"])
def test_a_verb_of_two_words_has_a_hyphen_or_an_underscore(verb, capsys):
    assert main([verb, "--help"]) == 0
    assert "Train FCN-32s, then 16s from it" in capsys.readouterr().out


def test_an_unknown_verb_is_a_bad_argument(capsys):
    assert main(["pridict"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: unknown verb 'pridict' (did you mean predict?); the verbs")


def test_the_list_of_verbs_waits_for_no_library():
    code = (
        "import sys; from flows.command_line import main; main([]); main(['x']);"
        "print(sorted({'torch', 'prefect', 'pydantic', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert run.stdout.endswith("[]\n")


def test_the_embedded_server_is_given_time_wherever_the_command_is_typed(tmp_path):
    code = (
        "from flows.command_line import main; assert main(['predict', '--help']) == 0;"
        "from prefect.settings import get_current_settings as now;"
        "print(now().server.ephemeral.startup_timeout_seconds, now().server.analytics_enabled)"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PREFECT_SERVER")}
    run = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment | {"PREFECT_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert run.stdout.endswith("120 False\n")
