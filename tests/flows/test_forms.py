"""Parameter forms: what Prefect draws of every flow's parameters, and checks on submission."""

import importlib
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

import pytest
from prefect.utilities.callables import parameter_schema
from pydantic import BaseModel

from flows.command_line import VERBS
from flows.parameters import parameter_model

FLOWS = (*VERBS, "predict_partition")


def flow(verb: str) -> Any:
    return getattr(importlib.import_module(f"flows.{verb}"), verb)


def fields(verb: str) -> dict[str, dict[str, Any]]:
    """Every field of a flow's form, nested ones after the name of their model."""
    schema = parameter_schema(flow(verb)).model_dump()
    found = dict(schema["properties"])
    for name, model in schema.get("definitions", {}).items():
        found |= {f"{name}.{key}": field for key, field in model.get("properties", {}).items()}
    return found


def numbers(field: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every number in a field: itself, an alternative, an item."""
    if field.get("type") in {"integer", "number"}:
        yield field
    items = field.get("items")
    for part in (*field.get("anyOf", []), *field.get("prefixItems", []), *([items] * bool(items))):
        yield from numbers(part)


def is_bounded(number: dict[str, Any]) -> bool:
    return "enum" in number or (
        ("minimum" in number or "exclusiveMinimum" in number)
        and ("maximum" in number or "exclusiveMaximum" in number)
    )


def choices(annotation: Any) -> Iterator[Any]:
    """Every choice among named values in an annotation."""
    if get_origin(annotation) is Literal:
        yield get_args(annotation)
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for info in annotation.model_fields.values():
            yield from choices(info.annotation)
    else:
        for argument in get_args(annotation):
            yield from choices(argument)


def offered(schema: Any) -> Iterator[tuple[Any, ...]]:
    """The values of every drop-down in a schema; one that offers a single value is fixed."""
    if isinstance(schema, dict):
        if "enum" in schema:
            yield tuple(schema["enum"])
        if "const" in schema:
            yield (schema["const"],)
        for part in schema.values():
            yield from offered(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from offered(part)


@pytest.mark.parametrize("verb", FLOWS)
def test_every_field_is_described(verb):
    bare = [name for name, field in fields(verb).items() if not field.get("description")]
    assert bare == []


@pytest.mark.parametrize("verb", FLOWS)
def test_every_number_has_bounds(verb):
    unbounded = [
        name for name, field in fields(verb).items() if not all(map(is_bounded, numbers(field)))
    ]
    assert unbounded == []


@pytest.mark.parametrize("verb", FLOWS)
def test_every_choice_is_a_drop_down(verb):
    schema = parameter_schema(flow(verb)).model_dump()
    assert set(choices(parameter_model(flow(verb)))) <= set(offered(schema))


@pytest.mark.parametrize("verb", FLOWS)
def test_no_form_asks_to_choose_between_models(verb):
    for field in fields(verb).values():
        models = [part for part in field.get("anyOf", []) if "$ref" in part]
        assert len(models) <= 1
