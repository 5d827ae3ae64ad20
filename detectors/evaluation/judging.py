"""Judging a task's images batch by batch: make them, screen them once, keep what figures need.

What comes of a batch depends on nothing but the batch: whoever judges it and when, the joined part is the same.
"""

import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from detectors.evaluation.adaptive import run_adaptive
from detectors.evaluation.attacks import run_attack, target_labels
from detectors.evaluation.batches import Batch
from detectors.evaluation.corruptions import corrupt
from detectors.evaluation.parts import FUSED, Part
from detectors.evaluation.settings import Task
from detectors.evaluation.surroundings import hardware
from detectors.screener import Screener, Verdicts
from model.image_set import to_unit

NUM_MISSES = 6
Say = dict[str, tuple[np.ndarray, np.ndarray]]


@runtime_checkable
class Engine(Protocol):
    """Whoever judges batches: this process, or many."""

    def judge(self, task: Task | None, batches: Iterable[Batch]) -> Iterator[Part]:
        """A part for each batch, in their order; clean images where there is no task."""
        ...

    def hardware(self) -> dict[str, Any]:
        """Where it judges."""
        ...


class OneProcess:
    """This process, one batch after the other."""

    def __init__(self, screener: Screener):
        self._screener = screener

    def judge(self, task: Task | None, batches: Iterable[Batch]) -> Iterator[Part]:
        return (judge_batch(self._screener, task, batch) for batch in batches)

    def hardware(self) -> dict[str, Any]:
        return hardware(self._screener.device)


def judge_batch(screener: Screener, task: Task | None, batch: Batch) -> Part:
    """Attack or corrupt a batch and judge what comes of it; without a task, judge it as it is."""
    originals = to_unit(batch.images)
    began = time.perf_counter()
    made = originals if task is None else make(screener, task, originals, batch.labels, batch.index)
    attacked = time.perf_counter()
    verdicts = screener.screen(made)
    said = say(verdicts)  # copies to the host: the clock stops when all is done
    ended = time.perf_counter()
    predictions, labels = _array(verdicts.class_index), batch.labels.numpy()
    missed = np.zeros(len(labels), dtype=bool)
    if batch.was_right is not None:
        missed = batch.was_right & (labels != predictions) & ~_array(verdicts.flagged)
    rows = _best(np.where(missed, said[FUSED][1], -1))[: int(missed.sum())]
    made = made.detach().cpu()
    return Part(
        labels=labels,
        predictions=predictions,
        scores={name: values[0] for name, values in said.items()},
        p_values={name: values[1] for name, values in said.items()},
        seconds=ended - began,
        attack_seconds=attacked - began,
        perturbation={} if task is None else _sizes(made - originals),
        misses=torch.stack([originals[rows], made[rows]], 1).numpy(),
        miss_facts=np.stack([labels[rows], predictions[rows], said[FUSED][1][rows]], 1).astype(np.float64),
        targets=None if task is None or not task.targeted else _targets(screener, task, batch),
    )


def join(parts: Iterable[Part]) -> Part:
    """One part of a task's batches, in their order. Memory grows by a few numbers an image, and by no image."""
    lean: list[Part] = []
    nothing = np.zeros(0)
    misses = facts = nothing
    for part in parts:
        misses, facts = (part.misses, part.miss_facts) if not lean else _better(misses, facts, part)
        lean.append(replace(part, misses=nothing, miss_facts=nothing))
    counts = [len(part.labels) for part in lean]
    return Part(
        labels=np.concatenate([part.labels for part in lean]),
        predictions=np.concatenate([part.predictions for part in lean]),
        scores={name: np.concatenate([part.scores[name] for part in lean]) for name in lean[0].scores},
        p_values={name: np.concatenate([part.p_values[name] for part in lean]) for name in lean[0].p_values},
        seconds=sum(part.seconds for part in lean),
        attack_seconds=sum(part.attack_seconds for part in lean),
        perturbation={
            name: float(np.average([part.perturbation[name] for part in lean], weights=counts))
            for name in lean[0].perturbation
        },
        misses=misses,
        miss_facts=facts,
        targets=None if lean[0].targets is None else np.concatenate([part.targets for part in lean]),
    )


def make(screener: Screener, task: Task, images: Tensor, labels: Tensor, index: int) -> Tensor:
    """The images of one batch as the task makes them."""
    seed = _seed(task, index)
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
    )


def _seed(task: Task, index: int) -> int:
    """Each batch's own."""
    return task.seed * 100_003 + index


def _targets(screener: Screener, task: Task, batch: Batch) -> np.ndarray:
    """Those that `make` aims at."""
    return target_labels(batch.labels, len(screener.labels), seed=_seed(task, batch.index)).numpy()


def say(verdicts: Verdicts) -> Say:
    """Score and p-value of each detector, and of the verdict under the name `fused`.

    Scores order inputs beyond the furthest calibration score too; their p-values are all equal there.
    """
    said = {name: (_array(of.score), _array(of.p_value)) for name, of in verdicts.evidence.items()}
    return {**said, FUSED: (_array(verdicts.suspicion), _array(verdicts.p_value))}


def _sizes(change: Tensor) -> dict[str, float]:
    rows = change.flatten(1)
    return {"linf": float(rows.abs().amax(1).double().mean()), "l2": float(rows.norm(dim=1).double().mean())}


def _better(misses: np.ndarray, facts: np.ndarray, part: Part) -> tuple[np.ndarray, np.ndarray]:
    """The misses of highest p-value: wrong, not flagged, and least suspicious."""
    misses, facts = np.concatenate([misses, part.misses]), np.concatenate([facts, part.miss_facts])
    rows = _best(facts[:, 2])
    return misses[rows], facts[rows]


def _best(p_values: np.ndarray) -> np.ndarray:
    return np.argsort(-p_values, kind="stable")[:NUM_MISSES]


def _array(values: Tensor) -> np.ndarray:
    return np.asarray(values.detach().cpu().numpy())
