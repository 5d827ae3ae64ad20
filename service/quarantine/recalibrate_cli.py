"""lgm recalibrate."""

import shlex
import sys
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from detectors import Screener, load_bundle
from detectors.bundle import check_vacant
from detectors.recalibrated import Source, save_recalibrated
from detectors.recalibration import Judged, Recalibration, flagged, judge, recalibrate
from model.fields import MAX_SEED
from service.errors import SettingsError
from service.quarantine.blind_sample import Reviewed, gather
from service.quarantine.database import Database
from service.quarantine.places import Place, place_of_folder
from service.quarantine.quarantine import Quarantine
from service.quarantine.records import Item
from service.quarantine.store import Store

BATCH = 64


def recalibrate_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    from_quarantine: Annotated[
        str, typer.Option(help="A service's state folder, or the URL of its database; then name the store too.")
    ],
    output: Annotated[Path, typer.Option(help="Folder of the new version; must be empty or absent.")],
    store: Annotated[str | None, typer.Option(help="Folder or URL of the bytes, beside a database's URL.")] = None,
    since: Annotated[datetime | None, typer.Option(help="Only what was judged since, in UTC.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, max=MAX_SEED, help="Of the part that is drawn where there is more than enough.")
    ] = 0,
    yes: Annotated[bool, typer.Option("--yes", help="Write it without being asked.")] = False,
) -> None:
    """Make a new version calibrated on the traffic's own blind sample too; shows what would change before it does."""
    check_vacant(output)
    screener = load_bundle(bundle)
    place = _place(from_quarantine, store)
    with closing(Quarantine(Database(place.database, must_exist=True), Store(place.store))) as quarantine:
        begin = None if since is None else since.replace(tzinfo=UTC)
        reviewed = gather(quarantine, model=screener.name, version=screener.version, since=begin)
        if reviewed.num_cut:
            typer.echo(
                f"{reviewed.num_cut} images of the blind sample are left out: they are older than one that expired "
                "or was deleted, and what is left of those is no fair sample"
            )
        sample = _judge(screener, quarantine, reviewed.ordinary)
        generator = torch.Generator().manual_seed(seed)
        found = recalibrate(screener, sample, generator=generator)
        _show(screener, found, reviewed, sample, quarantine)
    if not yes:
        typer.confirm(f"Write this as a new version to {output}?", abort=True)
    saved = save_recalibrated(found, bundle, output, _source(reviewed))
    typer.echo(f"{output}: {saved.name} {saved.version}; it serves once it is activated")


def _place(where: str, store: str | None) -> Place:
    if "://" not in where:
        return place_of_folder(Path(where))
    if store is None:
        raise SettingsError("--store: name it beside a database's URL, a folder or a URL as s3://bucket/folder")
    return Place(where, store)


def _judge(screener: Screener, quarantine: Quarantine, items: Sequence[Item]) -> Judged:
    """As they were kept, so that no rounding moves a score."""
    batches = (items[start : start + BATCH] for start in range(0, len(items), BATCH))
    return judge(
        screener,
        (torch.stack([torch.from_numpy(quarantine.pixels(item.id)) for item in batch]) for batch in batches),
    )


def _show(before: Screener, found: Recalibration, reviewed: Reviewed, sample: Judged, quarantine: Quarantine) -> None:
    console = Console(width=None if Console().is_terminal else 120)
    classes = Table("class", "calibrated on", "sampled", "flagged", "added", "threshold", "then (nats)", box=None)
    for change in found.changes:
        classes.add_row(
            change.label,
            *map(str, (change.num_before, change.num_sampled, change.num_beyond, change.num_added)),
            f"{change.threshold_before:.3f}",
            f"{change.threshold_after:.3f}",
        )
    console.print(classes)
    groups = Table("reviewed", "images", "flagged", "then", box=None)
    for name, judged in (
        ("ordinary, of the blind sample", sample),
        ("false positives", _judge(before, quarantine, reviewed.false_positives)),
        ("adversarial or abnormal", _judge(before, quarantine, reviewed.found_out)),
    ):
        counts = [int(flagged(screener, judged).sum()) for screener in (before, found.screener)]
        groups.add_row(name, str(len(judged)), *map(str, counts))
    console.print(groups)
    console.print(f"{reviewed.num_found_out} of the blind sample were found adversarial or abnormal and are left out")


def _source(reviewed: Reviewed) -> Source:
    moments = [item.judged_at for item in reviewed.ordinary]
    return Source(
        digest=reviewed.digest,
        since=f"{min(moments):%Y-%m-%d %H:%M}Z",
        until=f"{max(moments):%Y-%m-%d %H:%M}Z",
        command=shlex.join(["lgm", *sys.argv[1:]]),
    )
