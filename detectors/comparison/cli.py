"""lgm compare."""

import csv
import io
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from detectors.commands.options import listed
from detectors.comparison.carrying_out import FAILED, carry_out
from detectors.comparison.judging import Row
from detectors.comparison.pictures import draw
from detectors.comparison.planning import Run, plan, training_folder
from detectors.comparison.plots import Plane, plane_of
from detectors.comparison.report import write_report
from detectors.comparison.settings import ComparisonError, load_comparison
from detectors.comparison.summaries import Summary, summarise
from detectors.comparison.tables import write_tables
from detectors.comparison.wording import title_of, told
from detectors.evaluation.parts import write_bytes, write_json, write_text
from detectors.evaluation.surroundings import hardware, versions
from model.checkpoint import load_checkpoint

RESULTS, ROWS, REPORT, TABLES = "results.json", "rows.csv", "report.html", "tables.md"
SHOWN = ("accuracy", "calibration_error", "detection", "verification_accuracy", "training_seconds")


def compare(
    config: Annotated[Path, typer.Argument(help="A TOML file, for instance model/comparisons/quick.toml.")],
    output: Annotated[Path | None, typer.Option(help="Folder of the results; runs/compare/NAME by default.")] = None,
    only: Annotated[str, typer.Option(help="Some of its experiments, by name: plane,losses.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="table.key=value or experiments.NAME.key=value, as often as needed."),
    ] = None,
) -> None:
    """Train a network with each loss, judge it by its own likelihood, and write the results.

    rows.csv has a row a training, results.json means, intervals, ranks; report.html stands alone; tables.md and
    .webp pictures are for a README. The same command again goes on where an interrupted one stopped.
    """
    comparison = load_comparison(config, set_ or ())
    folder = output or Path("runs") / "compare" / comparison.name
    runs = plan(comparison, folder, only=listed("--only", only))
    with LiveProgress() as watcher:
        rows = carry_out(runs, comparison.abnormal, folder, watcher)
    if all(FAILED in row for row in rows):
        raise ComparisonError(f"no training came to figures; the first ended so: {rows[0][FAILED]}")
    experiments = list({run.experiment.name: run.experiment for run in runs}.values())
    summaries = [
        summarise(experiment, [row for row in rows if row["experiment"] == experiment.name])
        for experiment in experiments
    ]
    results = {
        "name": comparison.name,
        "command": shlex.join(["lgm", *sys.argv[1:]]),
        "abnormal": asdict(comparison.abnormal),
        "training": config.read_text(encoding="utf-8"),
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "rows": rows,
        "summaries": [_plain(summary) for summary in summaries],
    }
    planes = _planes(runs, rows, folder)
    names = [summary.experiment.name for summary in summaries]
    pictures = {name: draw(summary, planes.get(name, [])) for name, summary in zip(names, summaries, strict=True)}
    write_json(folder / RESULTS, results)
    write_text(folder / ROWS, _csv(rows))
    write_text(folder / REPORT, write_report(results, summaries, pictures))
    write_text(folder / TABLES, write_tables(results, summaries, pictures))
    for picture in (picture for drawn in pictures.values() for picture in drawn):
        write_bytes(folder / picture.name, picture.webp)
    for summary in summaries:
        Console().print(build_table(summary))
    typer.echo(str(folder / REPORT))


class LiveProgress:
    """One bar over all runs; beside it the run and its epoch."""

    def __init__(self) -> None:
        columns = (
            BarColumn(bar_width=12),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[at]}"),
        )
        self._progress = Progress(*columns, console=Console(stderr=True))
        self._task = self._progress.add_task("comparing", total=None, at="")

    def __enter__(self) -> "LiveProgress":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def start(self, run: Run, number: int, total: int) -> None:
        self._progress.update(self._task, completed=number - 1, total=total, at=run.key)

    def epoch(self, run: Run, done: float) -> None:
        self._progress.update(self._task, at=f"{run.key}, epoch {done:.0f} of {run.config.training.epochs}")

    def finish(self, run: Run, row: Row) -> None:
        figures = [f"{title_of(name)} {told(name, row[name])}" for name in SHOWN if row.get(name) is not None]
        said = row.get(FAILED) or ", ".join(figures)
        self._progress.console.print(f"{run.key}: {said}", markup=False, highlight=False, soft_wrap=True)
        self._progress.advance(self._task)


def build_table(summary: Summary) -> Table:
    """An experiment's headline figures for the terminal."""
    names = [name for name in SHOWN if name in summary.figures]
    table = Table(title=summary.experiment.title)
    table.add_column("variant")
    for name in names:
        table.add_column(title_of(name), justify="right")
    for variant, figures in summary.variants.items():
        table.add_row(variant, *(told(name, figures[name].mean) if name in figures else "–" for name in names))
    return table


def _planes(runs: Sequence[Run], rows: Sequence[Row], folder: Path) -> dict[str, list[Plane]]:
    """Of networks with two features, the first seed of each variant."""
    found: dict[str, list[Plane]] = {}
    for run, row in zip(runs, rows, strict=True):
        drawn = run.config.network.num_features == 2 and run.seed == run.experiment.seeds[0] and not run.fitted
        if not drawn or FAILED in row:
            continue
        checkpoint = load_checkpoint(training_folder(folder, run.training_key))
        title = f"{run.variant}: {row['accuracy']:.2%}"
        found.setdefault(run.experiment.name, []).append(plane_of(checkpoint, title))
    return found


def _plain(summary: Summary) -> dict[str, Any]:
    return {
        "experiment": summary.experiment.name,
        "reference": summary.reference,
        "variants": {
            variant: {name: asdict(figure) for name, figure in figures.items()}
            for variant, figures in summary.variants.items()
        },
        "rankings": [asdict(ranking) for ranking in summary.rankings],
        "failed": summary.failed,
    }


def _csv(rows: Sequence[Row]) -> str:
    file = io.StringIO(newline="")
    names = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(file, fieldnames=names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()
