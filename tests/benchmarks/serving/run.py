"""The rounds over all servers, what they found, and what a reader needs to judge or repeat it."""

import json
import math
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from detectors import load_bundle
from model.config import DataConfig
from model.data import load_splits
from tests.benchmarks.loss import describe_run
from tests.benchmarks.serving import tables, wrk
from tests.benchmarks.serving.asked import Asked, judge
from tests.benchmarks.serving.contenders import OURS, Contender, Setting
from tests.benchmarks.serving.overload import Overload, overload
from tests.benchmarks.serving.processes import ServerProcess
from tests.benchmarks.serving.rounds import InProcess, Plan, Reference, Row, measure

NUM_IMAGES = 1_024
DISTURBED_CORES = 0.15
RIVALS = ("litserve", "bentoml", "mlserver")


class Run:
    """One run: a bundle, the images of a data set, a plan. Raises BenchmarkError where a server or wrk fails."""

    def __init__(self, *, bundle: Path, data: str, rivals: Path, plan: Plan, console: Console) -> None:
        wrk.require()
        screener = load_bundle(bundle)
        images = load_splits(DataConfig(name=data)).test.images[:NUM_IMAGES]  # type: ignore[arg-type]
        self._reference = Reference.of(screener, images)
        self._bundle, self._rivals = bundle.resolve(), rivals.resolve()
        self._plan, self._console = plan, console
        self._described: dict[str, object] = {}
        self.rows: list[Row] = []
        self._in_process: list[InProcess] = []
        self._overloads: list[Overload] = []

    def carry_out(self, chosen: Sequence[Contender]) -> None:
        """Every round over all servers; in the last one ours is overloaded."""
        with tempfile.TemporaryDirectory() as folder:
            setting = Setting(
                bundle=self._bundle,
                name=self._reference.screener.name,
                shape=self._reference.screener.image_format.shape,
                rivals=self._rivals,
                folder=Path(folder),
            )
            self._describe(setting, chosen)
            for number in range(self._plan.rounds):
                self._round(setting, chosen, number)

    def report(self) -> None:
        """Print the tables."""
        rates = ", ".join(f"{one.images_per_second:.0f}" for one in self._in_process)
        self._console.print(f"in process, batches of 64, all threads: {rates} images/s by round", highlight=False)
        self._console.print(tables.loads(self.rows), tables.processor(self.rows))
        if self._overloads:
            self._console.print(tables.overloads(self._overloads))
        if asked := self._asked():
            self._console.print(tables.verdicts(asked))
        most = max([one.others_cores for one in self._in_process] + [row.others_cores for row in self.rows])
        if most > DISTURBED_CORES:
            self._console.print(
                f"DISTURBED: other processes took up to {most:.2f} cores; repeat it on an idle machine"
            )

    def write(self, output: Path) -> None:
        """Every figure, as JSON."""
        figures: dict[str, Any] = {
            "run": self._described,
            "plan": asdict(self._plan),
            "in_process": [asdict(one) for one in self._in_process],
            "rows": [asdict(row) for row in self.rows],
            "overloads": [asdict(one) for one in self._overloads],
            "asked": [_told(asked) for asked in self._asked()],
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(figures, indent=1, allow_nan=False))
        self._console.print(f"every figure: {output}", highlight=False)

    def _describe(self, setting: Setting, chosen: Sequence[Contender]) -> None:
        screener = self._reference.screener
        on_the_machine = describe_run(torch.device("cpu"), {})
        self._described = {name: on_the_machine[name] for name in ("hardware", "load_average_at_start", "torch")}
        self._described |= {name: version(name) for name in ("lgm-guard", "fastapi", "uvicorn")}
        self._described |= {"bundle": f"{screener.name} {screener.version}", **dict(_rival_versions(setting))}
        self._described |= {contender.name: contender.settings for contender in chosen}
        for name, value in self._described.items():
            self._console.print(f"{name}: {value}", highlight=False)

    def _round(self, setting: Setting, chosen: Sequence[Contender], number: int) -> None:
        self._in_process.append(self._reference.screen_in_process(seconds=self._plan.seconds, threads=setting.cpus))
        for contender in chosen:
            self._console.print(f"round {number + 1} of {self._plan.rounds}: {contender.name}", highlight=False)
            last = number + 1 == self._plan.rounds and contender.name == OURS
            then = self._overload if last and self._plan.factors else _nothing
            self.rows += measure(contender, setting, self._reference, self._plan, number=number, then=then)

    def _overload(self, server: ServerProcess, requests: Path) -> None:
        seconds = self._plan.overload_seconds
        self._overloads += overload(server, requests, factors=self._plan.factors, seconds=seconds)

    def _asked(self) -> list[Asked]:
        return judge(self.rows, self._in_process, self._overloads)


def _told(asked: Asked) -> dict[str, Any]:
    """JSON has no infinity: none."""
    figures = [figure if math.isfinite(figure) else None for figure in asked.figures]
    return asdict(asked) | {"figures": figures, "reached": asked.reached}


def _nothing(server: ServerProcess, requests: Path) -> None:
    """What follows the loads of a server that is not driven further."""


def _rival_versions(setting: Setting) -> Iterator[tuple[str, str]]:
    script = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    python = Path(setting.rival("python"))
    if python.exists():
        printed = subprocess.run([python, "-c", script, *RIVALS], capture_output=True, text=True, check=True).stdout
        yield from zip(RIVALS, printed.split(), strict=True)
