"""``python -m flows VERB``: runs one flow in this process, its parameters as options.

Options, help and checks come from the flow itself: its signature, its docstring, and the
fields of its configuration models. There is nothing to keep in step.

Exit status: 0 done, 1 failed run, 2 bad arguments, 130 interrupted, 143 terminated.
"""

import argparse
import ast
import difflib
import importlib
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prefect import Flow
    from pydantic import BaseModel, ValidationError
    from pydantic.fields import FieldInfo

VERBS = (
    *("ingest", "train", "train_staged", "evaluate", "promote", "quantise"),
    *("predict", "verify", "compact", "browse", "lineage", "pipeline"),
)

# Wherever the command is typed; in the root of the checkout Prefect finds the same, and why,
# in pyproject.toml. Two busy cores need more than the 20 s it waits for its embedded server.
PREFECT_SETTINGS = {
    "PREFECT_CLIENT_MAX_RETRIES": "7",
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
}


class UsageError(Exception):
    """Arguments that no flow run can be started with."""


def main(arguments: Sequence[str]) -> int:
    """Runs the flow that the first argument names; returns the exit status."""
    # An ordinary exit: the embedded server ends with this process.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        if not arguments or arguments[0] in ("-h", "--help"):
            print(overview())
            return 0
        verb, *options = arguments
        return run_flow(_flow(verb.replace("-", "_")), options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def overview() -> str:
    """What stands on the screen when no verb is given."""
    verbs = "\n".join(f"  {verb:<14}{_summary(verb)}" for verb in VERBS)
    return (
        "usage: python -m flows VERB [--parameter value ...]\n\n"
        f"verbs:\n{verbs}\n\n"
        "python -m flows VERB --help shows the parameters of a verb."
    )


def _summary(verb: str) -> str:
    # Read, not imported: a list of verbs need not wait for PyTorch and Prefect.
    source = Path(__file__).with_name(f"{verb}.py").read_text(encoding="utf-8")
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef) and node.name == verb:
            return (ast.get_docstring(node) or "").partition("\n")[0]
    raise LookupError(f"flows/{verb}.py defines no function {verb}")


def _flow(verb: str) -> "Flow[..., Any]":
    if verb not in VERBS:
        raise UsageError(
            f"unknown verb {verb!r}{_nearest(verb, VERBS)}; the verbs are {', '.join(VERBS)}"
        )
    for name, value in PREFECT_SETTINGS.items():
        os.environ.setdefault(name, value)
    flow: Flow[..., Any] = getattr(importlib.import_module(f"flows.{verb}"), verb)
    return flow


def run_flow(flow: "Flow[..., Any]", options: Sequence[str]) -> int:
    """Runs `flow` with command-line `options` and prints what it returns.

    An error that `fcn`, `tasks` or `flows` define speaks for itself and becomes one line on
    standard error; any other exception is a bug and keeps its traceback.

    Raises:
        UsageError: an unknown option, a missing or a wrong value.
    """
    from flows.console import hide_tracebacks, is_expected, summary_lines
    from tasks.server_wait import wait_for_server

    try:
        parameters = parse(flow, options)
    except SystemExit:  # argparse has printed the help
        return 0
    _require_no_credentials(parameters)
    hide_tracebacks()
    try:
        wait_for_server()
        result = flow(**parameters)
    except Exception as error:
        if not is_expected(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    for line in summary_lines(result):
        print(line)
    return 0


def parse(flow: "Flow[..., Any]", options: Sequence[str]) -> dict[str, Any]:
    """The parameters of `flow` that `options` give, validated.

    Raises:
        UsageError: an unknown option, a missing or a wrong value.
        SystemExit: ``--help`` was asked for and printed.
    """
    from pydantic import ValidationError
    from pydantic_settings import CliSettingsSource, SettingsError

    from flows.parameters import parameter_model

    model = parameter_model(flow)
    options = _hyphenated(options)
    _reject_unknown(model, options)
    try:
        source: CliSettingsSource[argparse.ArgumentParser] = CliSettingsSource(
            model,
            cli_prog_name=f"python -m flows {flow.fn.__name__}",
            cli_parse_args=options,
            formatter_class=_ShortUsage,
        )
        values = model(**_nones(source()))
    except ValidationError as error:
        raise UsageError(_reasons(model, error)) from error
    except SettingsError as error:
        raise UsageError(str(error).removeprefix("error parsing CLI: ")) from error
    return {name: getattr(values, name) for name in type(values).model_fields}


def _require_no_credentials(parameters: Mapping[str, Any]) -> None:
    """Prefect would store them with the run, before the run could look at them."""
    from tasks.run_start import texts_of
    from tasks.stores import StoreError, require_no_credentials

    try:
        require_no_credentials(*texts_of(parameters))
    except StoreError as error:
        raise UsageError(str(error)) from None


def _nones(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values`, where a list that holds ``None`` alone is no list: ``--config.crop-size None``."""
    return {
        name: None if value == [None] else _nones(value) if isinstance(value, Mapping) else value
        for name, value in values.items()
    }


class _ShortUsage(argparse.RawDescriptionHelpFormatter):
    """Leaves the twenty options out of the usage line; the page lists them anyway."""

    def add_usage(self, _usage: Any, actions: Any, groups: Any, prefix: Any = None) -> None:
        super().add_usage("%(prog)s [--parameter value ...]", actions, groups, prefix)


def _hyphenated(options: Sequence[str]) -> list[str]:
    """The options with ``_`` in their names, not their values, spelled ``-``."""
    return [_hyphenate(option) if option.startswith("--") else option for option in options]


def _hyphenate(option: str) -> str:
    name, equals, value = option.partition("=")
    return name.replace("_", "-") + equals + value


def _option_names(fields: Mapping[str, "FieldInfo"], prefix: str = "--") -> Iterator[str]:
    for name, info in fields.items():
        option = prefix + name.replace("_", "-")
        yield option
        nested: Mapping[str, FieldInfo] = getattr(info.annotation, "model_fields", {})
        yield from _option_names(nested, f"{option}.")


def _reject_unknown(model: "type[BaseModel]", options: Sequence[str]) -> None:
    known = ["--help", *_option_names(model.model_fields)]
    for option in options:
        name = option.partition("=")[0]
        if name.startswith("--") and name not in known:
            raise UsageError(f"unknown option {name}{_nearest(name, known)}; --help lists them all")


def _nearest(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _reasons(model: "type[BaseModel]", error: "ValidationError") -> str:
    known = set(_option_names(model.model_fields))
    return "; ".join(
        f"{_option(item['loc'], known)}: {item['msg'].removeprefix('Value error, ')}"
        + ("" if isinstance(item["input"], Mapping) else f", found {item['input']!r}")
        for item in error.errors(include_url=False)
    )


def _option(location: Sequence[int | str], known: set[str]) -> str:
    """The option that holds `location`; pydantic goes on into lists and unions."""
    path = [str(part).replace("_", "-") for part in location]
    names = ["--" + ".".join(path[:length]) for length in range(len(path), 0, -1)]
    return next((name for name in names if name in known), names[-1] if names else "parameters")
