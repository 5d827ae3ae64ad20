"""The lgm command, assembled from the rooms."""

import io
import os
import sys
from contextlib import redirect_stdout
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup

from model.errors import ConfigurationError, LGMGuardError
from model.output import ReaderGoneError, ToldOutput
from service.client.errors import ClientError

USER_ERROR = 2
READER_GONE = 141  # as a shell tells of those that SIGPIPE ended
# No traceback with local variables, no markup in help texts, no script for a shell.
PLAIN: dict[str, Any] = {"rich_markup_mode": None, "pretty_exceptions_enable": False, "add_completion": False}


class Command(NamedTuple):
    """Where a command is, as module:name, and what it does; with the extras that it needs torchattacks from."""

    where: str
    help: str
    extras: str = ""


COMMANDS = {
    "serve": Command("service.serve_cli:serve", "Serve a bundle over HTTP."),
    "predict": Command("service.client.cli:predict", "Ask a running service about image files."),
    "dashboard": Command("service.dashboard.cli:dashboard", "Show the page of a service that runs elsewhere."),
    "keys": Command("service.keys_cli:app", "API keys: make, list, revoke."),
    "quarantine": Command("service.quarantine.cli:app", "What was kept for review: upgrade, export, expire."),
    "recalibrate": Command(
        "service.quarantine.recalibrate_cli:recalibrate_command", "Calibrate anew on the traffic's blind sample."
    ),
    "capacity": Command("service.capacity.cli:capacity", "Tell how many replicas a load needs."),
    "train": Command("model.cli:train", "Train a network, or resume its training."),
    "fit": Command("detectors.commands.fit:fit", "Fit and calibrate detectors; write a bundle."),
    "screen": Command("detectors.commands.screen:screen", "Judge files, folders or a data set."),
    "describe": Command("detectors.commands.describe:describe", "Tell what a bundle or a checkpoint holds."),
    "export": Command("detectors.commands.export:export", "Write a bundle as one graph for other servers."),
    "evaluate": Command("detectors.evaluation.cli:evaluate", "Attack a bundle: what is its flag worth?", "eval"),
    "compare": Command("detectors.comparison.cli:compare", "Train with each of several losses.", "train,eval"),
    "verify": Command("detectors.comparison.verify_cli:verify_pairs", "Verify pairs of images.", "train,eval"),
}


class Commands(TyperGroup):
    """Loads the one command that is asked for; whatever the caller did wrong is one line on stderr and status 2.

    Most need torch, which takes seconds to import; `lgm predict` and `lgm keys` need none, and a server none of
    what trains and attacks.
    """

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return load(cmd_name) if cmd_name in COMMANDS else super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help) for name, command in COMMANDS.items()])

    def main(self, *args: Any, **options: Any) -> Any:
        """Here and not in `invoke`: help is written before anything is invoked, and the last of it flushed after."""
        try:
            with redirect_stdout(ToldOutput(sys.stdout or io.StringIO())) as output:
                try:
                    return super().main(*args, **options)
                finally:
                    output.flush()
        except (LGMGuardError, ClientError) as error:
            typer.echo(f"error: {' '.join(str(error).split())}", err=True)
            _leave(USER_ERROR)
        except ReaderGoneError:
            _leave(READER_GONE)


def _leave(status: int) -> NoReturn:
    """What cannot be written goes nowhere: Python would try once more, and end with a status of its own."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)


def load(name: str) -> Any:
    """The command of this name. Raises ConfigurationError where what it needs is not installed."""
    where, _, extras = COMMANDS[name]
    if extras and find_spec("torchattacks") is None:
        raise ConfigurationError(f"lgm {name} needs torchattacks: pip install 'lgm-guard[{extras}]'")
    module, _, attribute = where.partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):  # several commands
        return typer.main.get_command(found)
    alone = typer.Typer(**PLAIN)
    alone.command(name)(found)
    return typer.main.get_command(alone)


app = typer.Typer(cls=Commands, name="lgm", no_args_is_help=True, **PLAIN)


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
