"""Judging a task's images batch by batch: make them, screen them once, keep what figures need."""

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from detectors.evaluation.adaptive import run_adaptive
from detectors.evaluation.attacks import run_attack
from detectors.evaluation.corruptions import corrupt
from detectors.evaluation.inputs import Inputs, batch
from detectors.evaluation.parts import FUSED, Part
from detectors.evaluation.settings import Task
from detectors.screener import Screener, Verdicts
from model.data import ImageSet

NUM_MISSES = 6
Advance = Callable[[int], None]
Say = dict[str, tuple[np.ndarray, np.ndarray]]


def judge_clean(inputs: Inputs, sample: ImageSet, advance: Advance) -> Part:
    """Judge the test images themselves."""
    tally = _Tally(inputs, tuple(sample.images.shape[1:]))
    for start in range(0, len(sample), inputs.settings.batch_size):
        clean = batch(sample.images, start, inputs.settings.batch_size)
        tally.add(clean, clean, sample.labels[start : start + len(clean)], time.perf_counter(), None)
        advance(len(clean))
    return tally.part()


def judge(inputs: Inputs, task: Task, sample: ImageSet, clean: Part, advance: Advance) -> Part:
    """Attack or corrupt the test images, or take the foreign ones, and judge them. -1 labels what has no class."""
    images = inputs.images_of(task, sample)
    foreign = task.group == "foreign"
    labels = torch.full((len(images),), -1) if foreign else sample.labels
    was_right = np.zeros(len(images), dtype=bool) if foreign else clean.right
    tally = _Tally(inputs, tuple(images.shape[1:]))
    size = inputs.settings.batch_size
    for index, start in enumerate(range(0, len(images), size)):
        originals, batch_labels = batch(images, start, size), labels[start : start + size]
        began = time.perf_counter()
        made = make(inputs.screener, task, originals, batch_labels, index)
        tally.add(originals, made, batch_labels, began, was_right[start : start + size])
        advance(len(made))
    return tally.part()


def make(screener: Screener, task: Task, images: Tensor, labels: Tensor, index: int) -> Tensor:
    """The images of one batch as the task makes them; each batch has its own seed."""
    seed = task.seed * 100_003 + index
    if task.group == "corruption":
        return corrupt(task.name, images, severity=task.severity or 1, seed=seed)
    if task.group == "foreign":
        return images
    if task.knowledge == "zero":
        return run_attack(
            screener.network,
            task.name,
            images,
            labels,
            eps=task.eps,
            steps=task.steps,
            targeted=task.targeted,
            seed=seed,
        )
    return run_adaptive(
        screener,
        task.name,
        images,
        labels,
        eps=task.eps or 0.0,
        steps=task.steps or 1,
        restarts=task.restarts or 1,
        seed=seed,
        false_alarm_rate=task.aim or 0.05,
    )


def say(verdicts: Verdicts) -> Say:
    """Score and p-value of each detector, and of the verdict under the name `fused`.

    Scores order inputs beyond the furthest calibration score too; their p-values are all equal there.
    """
    said = {name: (_array(of.score), _array(of.p_value)) for name, of in verdicts.evidence.items()}
    return {**said, FUSED: (_array(verdicts.suspicion), _array(verdicts.p_value))}


class _Tally:
    """What is kept of the batches: memory grows by a few numbers an image, and by no image."""

    def __init__(self, inputs: Inputs, shape: tuple[int, ...]):
        self._screener = inputs.screener
        self._rows: list[tuple[np.ndarray, np.ndarray, Say]] = []
        self._seconds = self._attack_seconds = 0.0
        self._sizes: list[Tensor] = []
        self._misses = np.zeros((0, 2, *shape), dtype=np.float32)
        self._facts = np.zeros((0, 3))

    def add(
        self, originals: Tensor, made: Tensor, labels: Tensor, began: float, was_right: np.ndarray | None
    ) -> None:
        """Judge a batch that was begun then; misses are looked for where it is told what was right before."""
        attacked = time.perf_counter()
        verdicts = self._screener.screen(made)
        said = say(verdicts)  # copies to the host: the clock stops when all is done
        self._seconds += time.perf_counter() - began
        self._attack_seconds += attacked - began
        self._rows.append((labels.numpy(), _array(verdicts.class_index), said))
        if was_right is not None:
            change = (made.detach().cpu() - originals).flatten(1)
            self._sizes.append(torch.stack([change.abs().amax(1), change.norm(dim=1)], 1))
            flagged = _array(verdicts.flagged)
            self._keep(originals, made, was_right & (self._rows[-1][0] != self._rows[-1][1]) & ~flagged)

    def part(self) -> Part:
        """All batches so far."""
        labels, predictions = (np.concatenate([row[place] for row in self._rows]) for place in (0, 1))
        columns = {
            name: tuple(np.concatenate([row[2][name][place] for row in self._rows]) for place in (0, 1))
            for name in self._rows[0][2]
        }
        sizes = torch.cat(self._sizes).double().mean(0).tolist() if self._sizes else []
        return Part(
            labels=labels,
            predictions=predictions,
            scores={name: values[0] for name, values in columns.items()},
            p_values={name: values[1] for name, values in columns.items()},
            seconds=self._seconds,
            attack_seconds=self._attack_seconds,
            perturbation=dict(zip(("linf", "l2"), sizes, strict=False)),
            misses=self._misses,
            miss_facts=self._facts,
        )

    def _keep(self, originals: Tensor, made: Tensor, missed: np.ndarray) -> None:
        """The misses of highest p-value: wrong, not flagged, and least suspicious."""
        labels, predictions, said = self._rows[-1]
        rows = np.flatnonzero(missed)
        rows = rows[np.argsort(-said[FUSED][1][rows], kind="stable")][:NUM_MISSES]
        pairs = torch.stack([originals[rows], made.detach().cpu()[rows]], 1).numpy()
        facts = np.stack([labels[rows], predictions[rows], said[FUSED][1][rows]], 1)
        misses, all_facts = np.concatenate([self._misses, pairs]), np.concatenate([self._facts, facts])
        best = np.argsort(-all_facts[:, 2], kind="stable")[:NUM_MISSES]
        self._misses, self._facts = misses[best], all_facts[best]


def _array(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy())
