"""lgm dashboard."""

from pathlib import Path
from typing import Annotated

import typer

from detectors.shipped import SHIPPED_BUNDLE
from service.client.common import DEFAULT_URL


def dashboard(
    url: Annotated[str, typer.Option(help="Address of the service.", envvar="LGM_URL")] = DEFAULT_URL,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    bundle: Annotated[
        list[Path] | None, typer.Option(help="Folder of a bundle for the playground, by default the shipped one.")
    ] = None,
    reports: Annotated[Path | None, typer.Option(help="Folder of evaluation runs to list.")] = None,
    allow_anonymous: Annotated[
        bool, typer.Option("--allow-anonymous", help="Let other machines in although the service asks for no key.")
    ] = False,
) -> None:
    """Show the web page of a service that runs elsewhere. It is on the service itself too, under /dashboard."""
    from service.dashboard import alone

    alone.show(
        url=url,
        host=host,
        port=port,
        bundles=tuple(bundle or [SHIPPED_BUNDLE]),
        reports=reports,
        allow_anonymous=allow_anonymous,
    )
