"""What a terminal shows of an evaluation: a table that grows while it runs, and a bar with the time left."""

from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from detectors.evaluation.parts import FUSED
from detectors.evaluation.rows import Row

NUM_LIVE_ROWS = 20
WIDTH = 130  # where the output is no terminal
TEXTS = frozenset({"attack", "knows", "detector"})
EXPENDABLE = ("judged", "steps", "95 % interval", "time", "SR@50", "knows", "TPR@1%")

Cells = dict[str, str]


def percent(value: float | None, digits: int = 1) -> str:
    """A share as a percentage; a dash where there is none. Rounding never claims all or nothing."""
    if value is None:
        return "–"
    text = f"{100 * value:.{digits}f}"
    step = 10.0**-digits
    if value < 1 and float(text) == 100:
        text = f"{100 - step:.{digits}f}"
    return f"{text} %"


def area(value: float | None) -> str:
    """An AUROC with four digits, cut rather than rounded up to one."""
    return "–" if value is None else "0.9999" if 0.99995 <= value < 1 else f"{value:.4f}"


def case_cells(row: Mapping[str, Any]) -> Cells:
    """What was done to the images, as a person reads it."""
    attack = row["attack"] if row["severity"] is None else f"{row['attack']} {row['severity']}"
    norm = "" if row["norm"] in {"none", "linf"} else f" {row['norm']}"
    return {
        "attack": f"{attack}{' (targeted)' if row['targeted'] else ''}",
        "eps": "–" if row["eps"] is None else f"{row['eps']:.4g}{norm}",
        "steps": "–" if row["steps"] is None else str(row["steps"]),
        "knows": row["knowledge"],
    }


def cells(row: Mapping[str, Any]) -> Cells:
    """A row of results.json as a person reads it."""
    interval = row["auroc_interval"]
    return case_cells(row) | {
        "seed": str(row["seed"]),
        "detector": row["detector"],
        "accuracy": percent(row["attacked_accuracy"]),
        "judged": str(row["num_judged"]) + _on_target(row),
        "AUROC": area(row["auroc"]),
        "95 % interval": "–" if interval is None else f"{interval[0]:.3f}–{interval[1]:.3f}",
        "TPR@5%": percent(row["tpr_at_fpr_5"]),
        "TPR@1%": percent(row["tpr_at_fpr_1"]),
        "SR@5": percent(row["sr_at_5"]),
        "SR@50": percent(row["sr_at_50"]),
        "time": f"{row['seconds']:.1f} s",
    }


def _on_target(row: Mapping[str, Any]) -> str:
    """Of a targeted attack's images; results from before it was counted have none."""
    count = row.get("num_on_target")
    return "" if count is None else f" ({count} on target)"


def worth_telling(rows: Sequence[Row]) -> list[Row]:
    """The rows, less those of a single detector, which orders inputs of a class as the verdict does."""
    single = len({row["detector"] for row in rows}) <= 2
    return [row for row in rows if row["detector"] == FUSED or not single]


def build_table(rows: Sequence[Row], *, width: int) -> Table:
    """Rows for a terminal so wide; the verdict's are bold, and columns that do not fit are left out."""
    shown = [cells(row) for row in rows]
    table = Table()
    names = _fitting(shown, width)
    for name in names:
        table.add_column(name, justify="left" if name in TEXTS else "right", overflow="fold")
    for row, texts in zip(rows, shown, strict=True):
        table.add_row(*(texts[name] for name in names), style="bold" if row["detector"] == FUSED else None)
    return table


def _fitting(shown: Sequence[Cells], width: int) -> list[str]:
    """Column names, less what is the same in every row and, as far as need be, the least important."""
    if not shown:
        return []
    names = [name for name in shown[0] if name != "seed" or len({texts[name] for texts in shown}) > 1]
    for expendable in EXPENDABLE:
        needed = 1 + sum(3 + max(len(name), *(len(texts[name]) for texts in shown)) for name in names)
        if needed <= width:
            break
        names = [name for name in names if name != expendable]
    return names


def checks_table(checks: Iterable[Mapping[str, str]]) -> Table:
    """Self-checks for a terminal."""
    styles = {"refuse": "bold red", "warn": "yellow", "passed": "green", "not run": "dim"}
    table = Table("self-check", "outcome", "what was found", title="self-checks", title_justify="left")
    for check in checks:
        style = styles[check["level"]]
        table.add_row(check["name"], f"[{style}]{check['level']}[/]", check["message"].replace("[", r"\["))
    return table


def output_console() -> Console:
    """Standard output; wide enough for the table where it is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=WIDTH)


class LiveTable:
    """A watcher that shows the verdict's rows as they come, and a bar with the time left, on standard error."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
        )
        self._task = self._progress.add_task("", total=None)
        self._rows: list[Row] = []
        self._console = console
        self._live = Live(console=console, transient=True, get_renderable=self._render, refresh_per_second=4)

    def __enter__(self) -> "LiveTable":
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def start(self, total: int) -> None:
        """The whole cost is known."""
        self._progress.update(self._task, total=total)

    def begin(self, title: str) -> None:
        """A task begins."""
        self._progress.update(self._task, description=title)

    def advance(self, cost: int) -> None:
        """So much of it is done."""
        self._progress.advance(self._task, cost)

    def extend(self, cost: int) -> None:
        """There is more to do than was said."""
        total = self._progress.tasks[0].total or 0
        self._progress.update(self._task, total=total + cost)

    def finish(self, rows: list[Row]) -> None:
        """A task's rows are there."""
        self._rows += [row for row in rows if row["detector"] == FUSED]

    def _render(self) -> Group:
        return Group(
            build_table(self._rows[-NUM_LIVE_ROWS:], width=self._console.width), self._progress.get_renderable()
        )
