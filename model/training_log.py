"""What a training run tells: progress bar, CSV and TensorBoard."""

import csv
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from model.config import Config
from model.losses.lgm import LossTerms


class Report:
    """Running means over an epoch, kept on the device so that a step does not wait for it."""

    def __init__(self) -> None:
        self.count = 0
        self._sums: Tensor | None = None
        self._latest: dict[str, float] = {}

    def add(self, terms: LossTerms, correct: Tensor, count: int, **latest: float) -> None:
        """Add a batch: its loss terms (means), its number of right answers, and the current settings."""
        values = torch.stack([term.detach() * count for term in terms] + [correct.to(terms.total.dtype)])
        self._sums = values if self._sums is None else self._sums + values
        self.count += count
        self._latest = latest

    def figures(self) -> dict[str, float]:
        """loss, classification, likelihood: means per image in nats; accuracy: a share; then the settings."""
        means = [] if self._sums is None else (self._sums / self.count).tolist()
        names = ("loss", "classification", "likelihood", "accuracy")
        return {**dict(zip(names, means, strict=False)), **self._latest}


@runtime_checkable
class Reporter(Protocol):
    """Whoever wants to know how a run goes."""

    def start(self, config: Config, steps_per_epoch: int, history: list[dict[str, float]]) -> None: ...

    def step(self, epoch: int, step: int, report: Report) -> None: ...

    def finish_epoch(self, figures: dict[str, float]) -> None: ...


class Silent:
    """A reporter that tells nobody."""

    def start(self, config: Config, steps_per_epoch: int, history: list[dict[str, float]]) -> None:
        """Nothing."""

    def step(self, epoch: int, step: int, report: Report) -> None:
        """Nothing."""

    def finish_epoch(self, figures: dict[str, float]) -> None:
        """Nothing."""


class RunLog:
    """A reporter that shows a progress bar and writes metrics.csv and TensorBoard events to the run's folder.

    A resumed run's CSV starts with the rows of the epochs that its checkpoint holds, so an epoch
    that was cut short never leaves a row.
    """

    def __init__(self, output: Path):
        self._output = output
        self._progress = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
        )
        self._rows: list[dict[str, float]] = []
        self._writer: Any = None

    def __enter__(self) -> "RunLog":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        if self._writer is not None:
            self._writer.close()

    def start(self, config: Config, steps_per_epoch: int, history: list[dict[str, float]]) -> None:
        self._rows = list(history)
        self._writer = _tensorboard(self._output, len(history))
        self._task = self._progress.add_task(
            "training",
            total=config.training.epochs * steps_per_epoch,
            completed=len(history) * steps_per_epoch,
            epoch=f"{len(history) + 1}/{config.training.epochs}",
            figures="",
        )
        self._epochs = config.training.epochs

    def step(self, epoch: int, step: int, report: Report) -> None:
        self._progress.advance(self._task)
        if step % 10 == 0:
            self._progress.update(
                self._task, epoch=f"{epoch + 1}/{self._epochs}", figures=_short_line(report.figures())
            )

    def finish_epoch(self, figures: dict[str, float]) -> None:
        self._rows.append(figures)
        _write_csv(self._output / "metrics.csv", self._rows)
        if self._writer is not None:
            for name, value in figures.items():
                self._writer.add_scalar(name.rstrip("_"), value, int(figures["epoch"]))
            self._writer.flush()
        self._progress.console.print(f"epoch {figures['epoch']:.0f}: {_line(figures)}")


def _short_line(figures: dict[str, float]) -> str:
    """Fits beside the bar in a terminal of 80 columns."""
    return (
        f"acc {figures['accuracy']:.4f} cls {figures['classification']:.4f} lkd {figures['likelihood']:.3f} "
        f"alpha {figures['alpha']:.2g} lambda {figures['lambda_']:.2g}"
    )


def _line(figures: dict[str, float]) -> str:
    shown = [
        f"accuracy {figures['accuracy']:.4f}",
        f"classification {figures['classification']:.4f}",
        f"likelihood {figures['likelihood']:.3f}",
        f"alpha {figures['alpha']:.3g}",
        f"lambda {figures['lambda_']:.3g}",
    ]
    if "held_out_accuracy" in figures:
        shown.append(f"held-out accuracy {figures['held_out_accuracy']:.4f}")
    return "  ".join(shown)


def _write_csv(path: Path, rows: list[dict[str, float]]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=[name.rstrip("_") for name in rows[0]])
        writer.writeheader()
        writer.writerows({name.rstrip("_"): value for name, value in row.items()} for row in rows)
    temporary.replace(path)


def _tensorboard(output: Path, epochs_done: int) -> Any:
    """TensorBoard's writer where the train extra is installed; the CSV is always there."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(output / "tensorboard"), purge_step=epochs_done + 1)
