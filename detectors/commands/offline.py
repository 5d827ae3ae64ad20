"""lgm evaluate, lgm compare, lgm verify: loaded only when they are asked for.

A server never loads torchattacks or what trains, so none of it may be imported with the other commands.
"""

from importlib import import_module
from importlib.util import find_spec

import typer

from model.errors import ConfigurationError

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def evaluate(context: typer.Context) -> None:
    """Attack a bundle and measure what its flag is worth."""
    _run(context, "evaluate", "detectors.evaluation.cli", extras="eval")


def compare(context: typer.Context) -> None:
    """Train a network with each of several losses and measure what they are worth."""
    _run(context, "compare", "detectors.comparison.cli", extras="train,eval")


def verify(context: typer.Context) -> None:
    """Verify pairs of images of classes that were never trained on, as LFW's protocol does."""
    _run(context, "verify", "detectors.comparison.verify_cli", extras="train,eval")


def _run(context: typer.Context, name: str, module: str, *, extras: str) -> None:
    if find_spec("torchattacks") is None:
        raise ConfigurationError(f"lgm {name} needs torchattacks: pip install 'lgm-guard[{extras}]'")
    status = import_module(module).app(args=context.args, prog_name=f"lgm {name}", standalone_mode=False)
    raise typer.Exit(status or 0)
