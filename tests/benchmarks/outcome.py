"""What the flag is worth, on every data set and seed: train, fit, attack, and set the figures beside what is asked.

    python -m tests.benchmarks.outcome [--quick] [--only mnist] [--seeds 0,1,2] [--cifar10 FOLDER]

Every step is an `lgm` command that is printed before it runs; finished ones are not run again, so an interrupted
run goes on. --quick attacks fewer images of one seed, with the bundles that are shipped where there are any.
"""

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from detectors import SHIPPED_BUNDLE

RUNS = Path("runs")
RESULTS = "results.json"
RIVALS = "energy,confidence,mahalanobis,kernel-density,lid,knn,feature-squeezing,consistency"
TWIN = "loss.alpha=0 loss.lambda=0 mixture.prior=learned"  # the log joint is then a linear layer: softmax training


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A cell of the table: the least that each attack, or foreign set, must reach at each eps."""

    attacks: tuple[str, ...]
    auroc: float | None
    rate: str
    share: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
    """One data set: what is trained, how it is attacked, what is asked."""

    name: str
    config: str
    data: str
    eps: str
    foreign: str
    cells: tuple[Asked, ...]
    shipped: Path | None = None

    @property
    def attacks(self) -> str:
        """All attacks of its cells."""
        named = (attack for cell in self.cells for attack in cell.attacks)
        return ",".join(name for name in named if name not in self.foreign.split(","))


ITERATED, MINIMAL = ("fgsm", "bim", "pgd"), ("deepfool", "cw")
SUITES = {
    suite.name: suite
    for suite in (
        Suite(
            name="mnist",
            config="mnist",
            data="mnist",
            eps="0.1,0.2,0.3",
            foreign="fashion-mnist,noise,inverted",
            cells=(
                Asked(attacks=ITERATED, auroc=0.998, rate="tpr_at_fpr_1", share=0.99),
                Asked(attacks=MINIMAL, auroc=0.98, rate="tpr_at_fpr_5", share=0.90),
                Asked(attacks=("fashion-mnist", "noise", "inverted"), auroc=None, rate="tpr_at_fpr_1", share=0.99),
            ),
            shipped=SHIPPED_BUNDLE,
        ),
        Suite(
            name="fashion-mnist",
            config="fashion-mnist",
            data="fashion-mnist",
            eps="0.05,0.1,0.2",
            foreign="mnist,noise",
            cells=(Asked(attacks=ITERATED, auroc=0.99, rate="tpr_at_fpr_5", share=0.97),),
        ),
        Suite(
            name="cifar10",
            config="cifar10-early",
            data="image-folder",
            eps="2/255,4/255,8/255",
            foreign="noise",
            cells=(
                Asked(attacks=ITERATED, auroc=0.99, rate="tpr_at_fpr_5", share=0.95),
                Asked(attacks=MINIMAL, auroc=0.92, rate="tpr_at_fpr_5", share=0.70),
            ),
        ),
    )
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How a suite is run."""

    suite: Suite
    folder: Path | None
    limit: int
    quick: bool

    def commands(self, seed: int, *, twin: bool) -> Iterator[tuple[Path, list[str]]]:
        """(what it leaves, arguments of lgm), in order."""
        name = self.suite.name + ("-softmax" if twin else "") + (f"-seed{seed}" if seed else "")
        run, bundle = RUNS / name, RUNS / "outcome" / f"{name}-bundle"
        if self.quick and self.suite.shipped is not None and not twin:
            bundle = self.suite.shipped
        else:
            yield run / "finished", ["train", *self._training(seed, twin), "--output", str(run)]
            yield bundle / "bundle.json", ["fit", str(run), *self._fitting(seed, twin), "--output", str(bundle)]
        for results, what in zip(self.results(seed, twin=twin), self._evaluations(), strict=True):
            chosen = ["--data", self.suite.data, *self._where, *what, "--seeds", str(seed)]
            yield results, ["evaluate", str(bundle), *chosen, "--output", str(results.parent)]

    def results(self, seed: int, *, twin: bool) -> tuple[Path, Path]:
        """Where the figures of attacks lie, and those of false alarms and of images of no class."""
        kind = ("quick-" if self.quick else "") + self.suite.name + ("-softmax" if twin else "")
        folder = RUNS / "outcome"
        return folder / f"{kind}-seed{seed}" / RESULTS, folder / f"{kind}-natural-seed{seed}" / RESULTS

    def _training(self, seed: int, twin: bool) -> list[str]:
        changes = [f"training.seed={seed}"] if seed else []
        if self.folder is not None:
            changes += ["data.name=image-folder", f"data.directory={self.folder}"]
        if twin:
            changes += [f"name={self.suite.name}-softmax", *TWIN.split()]
        return [
            f"model/configs/{self.suite.config}.toml",
            *(word for change in changes for word in ("--set", change)),
        ]

    def _fitting(self, seed: int, twin: bool) -> list[str]:
        if twin:
            return ["--detectors", "confidence", "--beside", "energy", "--seed", str(seed)]
        return ["--beside", RIVALS, "--seed", str(seed)]

    @property
    def _where(self) -> list[str]:
        return [] if self.folder is None else ["--data-dir", str(self.folder)]

    def _evaluations(self) -> tuple[list[str], list[str]]:
        """Attacks on some images; what needs no attack is measured on all."""
        limit = ["--limit", str(self.limit)]
        foreign = ["--foreign", self.suite.foreign, *(limit if self.quick else [])]
        return ["--attacks", self.suite.attacks, "--eps", self.suite.eps, *limit], foreign


def carry_out(plan: Plan, seeds: Sequence[int], *, twin: bool) -> None:
    """Run what is not finished; a failed step ends the run with its own message."""
    for seed in seeds:
        for left, arguments in plan.commands(seed, twin=twin):
            typer.echo(f"$ {shlex.join(['lgm', *arguments])}")
            if left.exists():
                continue
            done = subprocess.run([str(Path(sys.executable).parent / "lgm"), *arguments], env=os.environ, check=False)
            if done.returncode not in (0, 3):  # 3: measured, with figures that the self-checks refuse
                raise SystemExit(done.returncode)


def summarise(plan: Plan, seeds: Sequence[int], *, twin: bool) -> list[str]:
    """Rows of a Markdown table: each attack and eps, each detector, the mean and the least over the seeds."""
    rows: dict[tuple[str, float | None, str], list[dict[str, Any]]] = {}
    for seed in seeds:
        for results in plan.results(seed, twin=twin):
            for row in json.loads(results.read_text())["rows"]:
                rows.setdefault((row["attack"], row["eps"], row["detector"]), []).append(row)
    cells = {attack: cell for cell in plan.suite.cells for attack in cell.attacks}
    lines = []
    for (attack, eps, detector), found in rows.items():
        cell = cells.get(attack) if detector == "fused" and not twin else None
        budget = "" if eps is None else f" {eps:.3g}"
        name = f"softmax twin: {detector}" if twin else detector
        figures = [_told(found, key, cell) for key in ("auroc", "tpr_at_fpr_5", "tpr_at_fpr_1")]
        won = sum(row["num_successful"] for row in found)
        lines.append(f"| {plan.suite.name} | {attack}{budget} | {name} | {won:,} | {' | '.join(figures)} |")
    return lines


def false_alarms(plan: Plan, seeds: Sequence[int]) -> Iterator[str]:
    """What the self-checks say of them, at 1 % and at 5 %."""
    for seed in seeds:
        for check in json.loads(plan.results(seed, twin=False)[1].read_text())["checks"]:
            if check["name"].startswith("false alarms"):
                yield f"{plan.suite.name}, {check['level']}: {check['message']}"


def _told(rows: Sequence[dict[str, Any]], key: str, cell: Asked | None) -> str:
    values = [row[key] for row in rows if row[key] is not None]
    if not values:
        return "-"
    text = f"{statistics.mean(values):.4f}" + (f" ({min(values):.4f})" if len(values) > 1 else "")
    asked = None if cell is None else {"auroc": cell.auroc, cell.rate: cell.share}.get(key)
    return text if asked is None else f"{text}, asked {asked:g}: {'yes' if min(values) >= asked else 'NO'}"


def main(
    quick: Annotated[bool, typer.Option("--quick", help="200 images of one seed, shipped bundles.")] = False,
    only: Annotated[str, typer.Option(help="Data sets, all by default.")] = ",".join(SUITES),
    seeds: Annotated[str, typer.Option(help="Each trains, fits and attacks anew.")] = "0,1,2",
    cifar10: Annotated[Path | None, typer.Option(help="CIFAR-10 as an image folder: train/, test/.")] = None,
    limit: Annotated[int, typer.Option(help="Test images for each seed.")] = 1_000,
    twins: Annotated[bool, typer.Option(help="Also train each network's softmax twin.")] = True,
) -> None:
    """Train, fit and attack; print a table of what was asked and what was reached."""
    chosen = [int(seed) for seed in ("0" if quick else seeds).split(",")]
    lines = ["| data | attack | detector | won | AUROC | TPR at 5 % | TPR at 1 % |", "| " + "--- | " * 7]
    alarms: list[str] = []
    for name in ("mnist" if quick else only).split(","):
        if name == "cifar10" and cifar10 is None:
            typer.echo("cifar10 is left out: say where its image folder lies with --cifar10")
            continue
        folder = cifar10 if name == "cifar10" else None
        plan = Plan(suite=SUITES[name], folder=folder, limit=200 if quick else limit, quick=quick)
        for twin in (False, True) if twins and not quick else (False,):
            carry_out(plan, chosen, twin=twin)
            lines += summarise(plan, chosen, twin=twin)
        alarms += false_alarms(plan, chosen)
    typer.echo("\n".join([*lines, "", *alarms]))


if __name__ == "__main__":
    typer.run(main)
