"""Commands without the `lgm` around them, which makes one line of every error."""

from collections.abc import Callable

import typer


def alone(command: Callable[..., None]) -> typer.Typer:
    """The command as an application of its own, whose errors come through as they are."""
    app = typer.Typer(rich_markup_mode=None)
    app.command()(command)
    return app
