"""The evaluation itself: every task once, finished ones from disk, then figures, checks and results.json."""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from detectors.evaluation import checks
from detectors.evaluation.attack_checks import SATURATED, check_attacks
from detectors.evaluation.batches import Batch, clean_batches, task_batches
from detectors.evaluation.checks import Check
from detectors.evaluation.corruptions import CORRUPTIONS
from detectors.evaluation.inputs import Inputs
from detectors.evaluation.judging import Engine, OneProcess, join
from detectors.evaluation.parts import Part, block_key, discard_blocks, load_part, open_folder, save_part, write_json
from detectors.evaluation.rows import Measured, Row, clean_figures, make_rows
from detectors.evaluation.settings import Task, plan
from detectors.evaluation.summaries import over_seeds, worst_cases
from detectors.evaluation.surroundings import bundle_facts, versions
from detectors.evaluation.watcher import Watcher
from model.image_set import to_unit

SCHEMA_VERSION = 1
RESULTS = "results.json"
NUM_CHECKED = 256


class Evaluation:
    """One run in one folder: `run` it, then it holds what was measured. engine: by default this process."""

    def __init__(self, inputs: Inputs, output: Path, watcher: Watcher, *, command: str, engine: Engine | None = None):
        self._inputs = inputs
        self._engine = engine or OneProcess(inputs.screener)
        self._output = output
        self._watcher = watcher
        self._command = command
        self._promise = inputs.screener.false_alarm_rate
        self._samples = {seed: inputs.sample(seed) for seed in inputs.settings.seeds}
        self.clean: dict[int, Part] = {}
        self.measured: list[Measured] = []
        self.results: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Do all that is not yet done and write results.json; the results. Raises EvaluationError.

        A network that cannot be attacked honestly is not attacked: then the results hold no row and say why.
        """
        settings = self._inputs.settings
        open_folder(self._output, settings.fingerprint(*self._inputs.facts), asdict(settings))
        began, started = time.perf_counter(), datetime.now(UTC)
        tasks = plan(settings)
        self._watcher.start(sum(self._cost(task) for task in tasks) + sum(map(len, self._samples.values())))
        self._measure_clean()
        found = self._check_first()
        rows: list[Row] = []
        if not any(check.level == "refuse" for check in found):
            rows = [row for measured in self._measure(tasks) for row in self._tell(measured)]
        found += check_attacks(self.measured)
        self.results = self._results(rows, found)
        self.results["timing"] |= {
            "started": started.isoformat(timespec="seconds"),
            "this_session_seconds": time.perf_counter() - began,
        }
        write_json(self._output / RESULTS, self.results)
        return self.results

    def _measure_clean(self) -> None:
        for seed, sample in self._samples.items():
            self._watcher.begin(f"clean, seed {seed}")
            self.clean[seed] = self._judged(f"clean-seed{seed}", None, clean_batches(self._inputs, sample))

    def _measure(self, tasks: list[Task]) -> Iterator[Measured]:
        """Every task, and where asked the larger budgets of an attack that has not won yet."""
        for index, task in enumerate(tasks):
            yield self._finish(task)
            if self._inputs.settings.curve and not self._has_sibling(task, tasks[index + 1 :]):
                yield from self._go_on(task)

    def _go_on(self, task: Task) -> Iterator[Measured]:
        """Double eps until the attack wins or has the whole range; for attacks unaware of the detector."""
        if task.eps is None or task.knowledge != "zero":
            return
        pixels = math.prod(self._inputs.screener.image_format.shape)
        most = 1.0 if task.norm == "linf" else pixels**0.5
        while self.measured[-1].part.right.mean() >= SATURATED and (task.eps or most) < most:
            task = replace(task, eps=min(most, 2 * (task.eps or most)), on_curve=True)
            self._watcher.extend(self._cost(task))
            yield self._finish(task)

    def _has_sibling(self, task: Task, later: list[Task]) -> bool:
        return any(replace(task, eps=other.eps) == other for other in later)

    def _finish(self, task: Task) -> Measured:
        """One task, from disk if it was finished before."""
        self._watcher.begin(f"{task.title}{'' if task.eps is None else f' {task.eps:g}'}, seed {task.seed}")
        clean = self.clean[task.seed]
        batches = task_batches(self._inputs, task, self._samples[task.seed], clean)
        part = self._judged(task.key, task, batches)
        keeps = None
        if task.group == "corruption":
            keeps = bool(CORRUPTIONS[task.name].keeps_class[(task.severity or 1) - 1])
        self.measured.append(Measured(task=task, part=part, clean=clean, keeps_class=keeps))
        return self.measured[-1]

    def _judged(self, key: str, task: Task | None, batches: Iterator[Batch]) -> Part:
        part = load_part(self._output, key)
        if part is None:
            part = join(self._blocks(key, task, batches))
            save_part(self._output, key, part)
        else:
            self._count(part, task)
        discard_blocks(self._output, key)
        return part

    def _blocks(self, key: str, task: Task | None, batches: Iterator[Batch]) -> Iterator[Part]:
        """A part for each batch: from disk as far as a run that was killed has come, then judged and kept."""
        num_kept = 0
        while (part := load_part(self._output, block_key(key, num_kept))) is not None:
            num_kept += 1
            self._count(part, task)
            yield part
        for index, part in enumerate(self._engine.judge(task, islice(batches, num_kept, None)), start=num_kept):
            save_part(self._output, block_key(key, index), part)
            self._count(part, task)
            yield part

    def _count(self, part: Part, task: Task | None) -> None:
        self._watcher.advance(len(part.labels) * (task.cost if task else 1))

    def _tell(self, measured: Measured) -> list[Row]:
        rows = make_rows(measured, promise=self._promise)
        self._watcher.finish(rows)
        return rows

    def _cost(self, task: Task) -> int:
        return task.cost * len(self._inputs.images_of(task, self._samples[task.seed]))

    def _check_first(self) -> list[Check]:
        """What can be told before any attack."""
        inputs, seed = self._inputs, self._inputs.settings.seeds[0]
        sample = self._samples[seed]
        first = sample.select(torch.arange(min(NUM_CHECKED, len(sample))))
        batches = ((to_unit(one.images), one.labels) for one in clean_batches(inputs, first))
        looked = checks.look(inputs.screener, batches)
        figures = [row for one in self.clean for row in self._clean_figures(one)]
        return [
            checks.check_modes(inputs.screener, looked),
            checks.check_gradients(looked),
            checks.check_test_split(inputs.test.digest(), inputs.manifest.split_digests),
            checks.check_accuracy(self.clean[seed].right, inputs.manifest.measured),
            checks.check_resolution(inputs.manifest.calibration_sizes),
            *checks.check_false_alarms(figures, inputs.manifest.calibration_sizes),
        ]

    def _clean_figures(self, seed: int) -> list[Row]:
        labels = self._inputs.screener.labels
        return clean_figures(self.clean[seed], seed, labels, promise=self._promise)

    def _results(self, rows: list[Row], found: list[Check]) -> dict[str, Any]:
        inputs = self._inputs
        return {
            "schema_version": SCHEMA_VERSION,
            "command": self._command,
            "bundle": bundle_facts(inputs),
            "data": {
                "name": inputs.settings.data,
                "num_test": len(inputs.test),
                "digest": inputs.test.digest(),
                "num_a_seed": len(self._samples[inputs.settings.seeds[0]]),
            },
            "settings": asdict(inputs.settings),
            "verdict": "refused" if any(check.level == "refuse" for check in found) else "measured",
            "checks": [asdict(check) for check in found],
            "clean": [row for seed in self.clean for row in self._clean_figures(seed)],
            "rows": rows,
            "worst_cases": worst_cases(self.measured, promise=self._promise),
            "over_seeds": over_seeds(rows),
            "timing": self._timing(),
            "versions": versions(),
            "hardware": self._engine.hardware(),
        }

    def _timing(self) -> dict[str, Any]:
        """ratio: attacking and screening against attacking alone, over all attacks."""
        parts = [one.part for one in self.measured if one.task.group == "attack"]
        total, attacking = sum(part.seconds for part in parts), sum(part.attack_seconds for part in parts)
        return {
            "task_seconds": sum(one.part.seconds for one in self.measured),
            "attack_seconds": attacking,
            "ratio": total / attacking if attacking else None,
        }
