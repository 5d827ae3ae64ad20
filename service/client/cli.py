"""lgm predict."""

import csv
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from model.image_files import SUFFIXES, Met, check_named, image_files
from model.output import written
from service.client.answers import FailedPrediction, Prediction
from service.client.client import Client
from service.client.common import DEFAULT_URL
from service.client.errors import InputError

STANDARD_INPUT = Path("-")
FILES_AT_ONCE = 64
SOME_FAILED = 1
COLUMNS = ("image", "label", "class_index", "probability", "log_likelihood", "p_value", "flagged", "error")
Row = dict[str, Any]
Write = Callable[[list[Row]], object]


def predict(
    paths: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Image files or folders; - is standard input.")
    ],
    url: Annotated[str, typer.Option(help="Address of the service.", envvar="LGM_URL")] = DEFAULT_URL,
    key: Annotated[str | None, typer.Option(help="API key.", envvar="LGM_API_KEY")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON object a line, with all evidence.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds for each request, its retries included.")] = 30.0,
) -> None:
    """Ask a running service about image files. Exit status 1 where an image could not be judged."""
    form = _form(as_json, as_csv)
    check_named(paths)
    files = find_files(list(map(Path, paths)))
    piped = _standard_input() if STANDARD_INPUT in files else b""
    failed = flagged = 0
    with Client(url, key=key, timeout_seconds=timeout, max_instances=FILES_AT_ONCE) as client, form() as write:
        for rows in _ask(client, files, piped):
            write(rows)
            failed += sum(row["error"] is not None for row in rows)
            flagged += sum(row["flagged"] is True for row in rows)
    typer.echo(f"{len(files)} images, {flagged} flagged, {failed} could not be judged", err=True)
    if failed:
        raise typer.Exit(SOME_FAILED)


def find_files(paths: list[Path]) -> list[Path]:
    """Files as given, even where they do not exist, and the image files below folders, each once, in a stable order.

    Raises InputError for a folder without any, DataError for one that cannot be read.
    """
    met = Met()
    found: list[Path] = []
    for path in paths:
        inside = image_files(path) if path != STANDARD_INPUT and path.is_dir() else [path]
        if not inside:
            raise InputError(f"{path} holds no image files ({', '.join(sorted(SUFFIXES))})")
        found += filter(met.is_new, inside)
    return found


def _standard_input() -> bytes:
    """Raises InputError where nothing comes from there."""
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("-: standard input is a terminal or closed; give it an image file")
    try:
        content = sys.stdin.buffer.read()
    except OSError as error:
        raise InputError(f"-: standard input cannot be read: {error.strerror}") from None
    if not content:
        raise InputError("-: standard input is empty; give it an image file")
    return content


def _ask(client: Client, files: list[Path], piped: bytes) -> Iterator[list[Row]]:
    columns = (TextColumn("predicting"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal, redirect_stdout=False) as progress:
        task = progress.add_task("predicting", total=len(files))
        for start in range(0, len(files), FILES_AT_ONCE):
            chunk = files[start : start + FILES_AT_ONCE]
            images = [piped if path == STANDARD_INPUT else path for path in chunk]
            answered = zip(chunk, client.predict(images).predictions, strict=True)
            yield [_row(path, prediction) for path, prediction in answered]
            progress.advance(task, len(chunk))


def _row(path: Path, prediction: Prediction | FailedPrediction) -> Row:
    image = written(str(path))
    if isinstance(prediction, FailedPrediction):
        return {**dict.fromkeys(COLUMNS), "image": image, "error": prediction.error.detail}
    return {"image": image, **asdict(prediction), "error": None}


def _form(as_json: bool, as_csv: bool) -> Callable[[], AbstractContextManager[Write]]:
    if as_json and as_csv:
        raise InputError("choose either --json or --csv")
    return _json_lines if as_json else _csv if as_csv else _table


@contextmanager
def _json_lines() -> Iterator[Write]:
    yield lambda rows: typer.echo("\n".join(map(json.dumps, rows)))


@contextmanager
def _csv() -> Iterator[Write]:
    writer = csv.DictWriter(sys.stdout, COLUMNS, extrasaction="ignore")
    headers = iter([COLUMNS])  # once, and not before there is an answer

    def write(rows: list[Row]) -> None:
        for _ in headers:
            writer.writeheader()
        writer.writerows(rows)

    yield write
    sys.stdout.flush()


@contextmanager
def _table() -> Iterator[Write]:
    """Printed at the end, because its columns are as wide as their widest cells."""
    table = Table()
    for name in ("image", "label"):
        table.add_column(name, overflow="fold")
    for name in ("probability", "log-likelihood", "p-value", "flagged"):
        table.add_column(name, no_wrap=True)

    def write(rows: list[Row]) -> None:
        for row in rows:
            table.add_row(Text(row["image"]), *map(Text, _cells(row)))  # as text: a name may hold markup

    yield write
    Console().print(table)


def _cells(row: Row) -> tuple[str, ...]:
    if row["error"] is not None:
        return (f"error: {row['error']}",)
    told = row["label"] is not None
    return (
        row["label"] if told else "withheld",
        f"{row['probability']:.4f}" if told else "",
        f"{row['log_likelihood']:.2f}",
        f"{row['p_value']:.4f}",
        "yes" if row["flagged"] else "",
    )
