"""What a flow run shows on the console besides Prefect's own log lines."""

import dataclasses
import logging
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

_FLOORS = ("fcn", "tasks", "flows")


def is_expected(error: BaseException) -> bool:
    """Whether `error` is one that this project defines: about the data, not about the code."""
    return type(error).__module__.partition(".")[0] in _FLOORS


def hide_tracebacks() -> None:
    """Keeps the tracebacks of expected errors off the console; Prefect's record keeps them."""
    for handler in logging.getLogger().handlers:
        if _no_expected_traceback not in handler.filters:
            handler.addFilter(_no_expected_traceback)


def _no_expected_traceback(record: logging.LogRecord) -> bool:
    return not (record.exc_info and record.exc_info[1] and is_expected(record.exc_info[1]))


def summary_lines(result: Any, prefix: str = "") -> Iterator[str]:
    """The figures and texts of a flow's result, one ``name: value`` line each.

    A result within the result, such as the evaluation of a pipeline, is told after its name.
    """
    for name, value in _items(result).items():
        label = f"{prefix}{name.replace('_', ' ')}"
        if isinstance(value, str | int | float):
            yield f"{label}: {value:.4g}" if isinstance(value, float) else f"{label}: {value}"
        elif type(value).__module__.startswith("tasks."):
            yield from summary_lines(value, f"{label} ")


def _items(result: Any) -> dict[str, Any]:
    if isinstance(result, BaseModel):
        return dict(result)
    if dataclasses.is_dataclass(result):
        return {field.name: getattr(result, field.name) for field in dataclasses.fields(result)}
    return dict(result) if isinstance(result, Mapping) else {}
