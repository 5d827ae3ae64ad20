"""The lgm command, assembled from the rooms, and `lgm serve`."""

import inspect
from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from typer.core import TyperGroup

import detectors.cli
import model.cli
import service.client.cli
import service.dashboard.cli
from model.errors import LGMGuardError
from service import keys_cli
from service.capacity.cli import capacity_command
from service.client.errors import ClientError
from service.quarantine import cli as quarantine_cli
from service.quarantine.recalibrate_cli import recalibrate_command
from service.settings import PREFIX, Settings, load_settings, option

USER_ERROR = 2


class OneLineErrors(TyperGroup):
    """Whatever the caller did wrong is one line on stderr and exit status 2, in every command."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (LGMGuardError, ClientError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            raise typer.Exit(USER_ERROR) from None


app = typer.Typer(
    cls=OneLineErrors,
    name="lgm",
    help="Train, calibrate and serve image classifiers that know how likely their input is.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(model.cli.app)
app.add_typer(detectors.cli.app)
app.add_typer(keys_cli.app, name="keys")
app.add_typer(service.client.cli.app)
app.add_typer(service.dashboard.cli.app)
app.add_typer(quarantine_cli.app, name="quarantine")
app.command("recalibrate")(recalibrate_command)
app.command("capacity")(capacity_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("lgm-guard"))
        raise typer.Exit


@app.callback()
def lgm(
    show_version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Train, calibrate and serve image classifiers that know how likely their input is."""


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


app.command()(_serve_command())
