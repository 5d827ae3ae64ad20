"""lgm serve: an option for every setting."""

import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from service.settings import PREFIX, Settings, load_settings, option


def _serve_command() -> Callable[..., None]:
    """`lgm serve` with one option for each field of Settings, which checks them."""

    def serve(**given: str | bool | None) -> None:
        """Serve a bundle over HTTP. Settings: these options, over LGM_... variables, over the TOML file."""
        from service import server

        server.serve(load_settings(**{name: value for name, value in given.items() if value is not None}))

    options = {name: _option_type(name, field) for name, field in Settings.model_fields.items()}
    serve.__annotations__ = options
    vars(serve)["__signature__"] = inspect.Signature(
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]
    )
    return serve


def _option_type(name: str, field: FieldInfo) -> Any:
    default = field.get_default(call_default_factory=True, validated_data={})
    kind: Any = bool if field.annotation is bool else str
    name_or_not = f"{option(name)}/--no-{option(name).removeprefix('--')}" if default is True else option(name)
    return Annotated[
        kind | None,
        typer.Option(
            name_or_not,
            help=field.description if default is None else f"{field.description} [default: {default}]",
            envvar=PREFIX + name.upper(),
            metavar=None if kind is bool else _metavar(field),
            show_default=False,
        ),
    ]


def _metavar(field: FieldInfo) -> str:
    if get_origin(field.annotation) is Literal:
        return "|".join(get_args(field.annotation))
    names: dict[Any, str] = {int: "INTEGER", int | None: "INTEGER", float: "NUMBER", str: "TEXT"}
    return names.get(field.annotation, "PATH")


serve = _serve_command()
