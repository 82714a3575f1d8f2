"""A flow's signature as a model: the one source of options, help and checks."""

import inspect
import typing
from typing import Annotated, Any

from prefect import Flow
from prefect.utilities.callables import parameter_docstrings
from pydantic import BeforeValidator, Field, create_model
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict


class _Parameters(BaseSettings):
    model_config = SettingsConfigDict(
        cli_avoid_json=True,
        cli_enforce_required=True,
        cli_exit_on_error=False,
        cli_hide_none_type=True,
        cli_kebab_case=True,
        cli_parse_none_str="None",
        extra="forbid",
        nested_model_default_partial_update=True,
        protected_namespaces=(),
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Parameters come from the command line alone, never from the environment."""
        return (init_settings,)


def parameter_model(flow: Flow[..., Any]) -> type[BaseSettings]:
    """A model with one field for each parameter of `flow`, described by its docstring."""
    descriptions = parameter_docstrings(inspect.getdoc(flow.fn))
    hints = typing.get_type_hints(flow.fn, include_extras=True)
    fields = {
        name: (_annotation(hints[name]), _field(parameter, descriptions.get(name)))
        for name, parameter in inspect.signature(flow.fn).parameters.items()
    }
    return create_model(
        flow.fn.__name__,
        __base__=_Parameters,
        __doc__=_about(flow),
        **typing.cast("dict[str, Any]", fields),
    )


def _about(flow: Flow[..., Any]) -> str:
    """The docstring up to its sections: ``Args`` is told option by option."""
    return (inspect.getdoc(flow.fn) or "").partition("\n\nArgs:")[0]


def _field(parameter: inspect.Parameter, description: str | None) -> Any:
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    return Field(default, description=description)


def _annotation(hint: Any) -> Any:
    """`hint`; where it takes a text or a list of texts, one given value stays a text."""
    if str in typing.get_args(hint) and list[str] in typing.get_args(hint):
        return Annotated[hint, BeforeValidator(_single)]
    return hint


def _single(value: Any) -> Any:
    return value[0] if isinstance(value, list) and len(value) == 1 else value
