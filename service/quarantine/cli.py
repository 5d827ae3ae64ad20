"""lgm quarantine: upgrade, export, expire; of the quarantine that the settings name."""

import os
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from model.errors import ConfigurationError
from service.quarantine.blind_sample import every
from service.quarantine.database import HEAD, Database
from service.quarantine.places import place_of
from service.quarantine.quarantine import Quarantine
from service.quarantine.records import Filter, State
from service.quarantine.retention import Retention
from service.quarantine.store import Store
from service.settings import load_settings

app = typer.Typer(
    help="What was kept for review: upgrade, export, expire.", no_args_is_help=True, rich_markup_mode=None
)


@app.command()
def upgrade() -> None:
    """Bring the database of the settings (LGM_...) up to date, as a server does when it starts."""
    with closing(Database(place_of(load_settings()).database)) as database:
        database.upgrade()
        typer.echo(f"{database} is of version {HEAD}")


@app.command()
def expire() -> None:
    """Delete what is too old or too much by the settings (LGM_...), and files that no row names."""
    settings = load_settings()
    place = place_of(settings)
    with closing(Database(place.database, must_exist=True)) as database:
        retention = Retention(
            database,
            Store(place.store),
            max_items=settings.quarantine_max_items,
            max_bytes=settings.quarantine_max_bytes,
        )
        num_expired, num_swept = retention.expire(), retention.sweep()
    typer.echo(f"{num_expired} items expired, {num_swept} files without a row deleted")


@app.command()
def export(
    output: Annotated[Path, typer.Argument(help="Folder for items.jsonl and the images; must be empty or absent.")],
    state: Annotated[State | None, typer.Option(help="Only items in this state.")] = None,
) -> None:
    """Write what is kept by the settings (LGM_...): a line of JSON for each item, and its image as a PNG."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ConfigurationError(f"{output} is not an empty folder; choose another one")
    place = place_of(load_settings())
    with closing(Quarantine(Database(place.database, must_exist=True), Store(place.store))) as quarantine:
        output.mkdir(parents=True, exist_ok=True)
        count = 0
        with _private(output / "items.jsonl") as lines:
            for item in every(quarantine, Filter(state=state)):
                lines.write(item.model_dump_json().encode() + b"\n")
                if item.media_type is not None:
                    with _private(output / f"{item.id}.png") as file:
                        file.write(quarantine.image(item.id))
                count += 1
    typer.echo(f"{count} items in {output}")


def _private(path: Path) -> BinaryIO:
    """A new file that nobody else of this machine reads, as those of the quarantine itself."""
    return open(path, "xb", opener=partial(os.open, mode=0o600))
