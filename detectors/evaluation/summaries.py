"""What is said over several rows: the worst case over all attacks, and the spread over the seeds."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from detectors.evaluation import metrics
from detectors.evaluation.rows import Measured, Row
from detectors.evaluation.settings import Task

FIGURES = (
    "attacked_accuracy",
    "auroc",
    "tpr_at_fpr_5",
    "tpr_at_fpr_1",
    "realised_false_alarm_rate",
    "sr_at_5",
    "sr_at_50",
    "robust_accuracy_with_rejection",
    "flagged_share",
)


def worst_cases(measured: Iterable[Measured], *, promise: float) -> list[Row]:
    """Per-input worst case: an image counts as lost if any attack of the run within that budget gets through.

    For each seed, norm and eps over all attacks of that norm up to that eps; and over all that were asked for (norm
    "any"). Attacks that know the detector are counted where one of them had that eps itself: elsewhere, as where
    only the curve of the others goes so far, their smaller budgets would pass for what they can do there.
    """
    attacks = [one for one in measured if one.task.group == "attack"]
    found = []
    for seed in sorted({one.task.seed for one in attacks}):
        mine = [one for one in attacks if one.task.seed == seed]
        for norm, eps in _budgets(mine):
            within = [one for one in mine if not one.task.on_curve] if norm == "any" else _within(mine, norm, eps)
            for detector in within[0].part.detectors:
                found.append(_worst(within, detector, promise, seed=seed, norm=norm, eps=eps))
    return found


def _budgets(measured: Sequence[Measured]) -> list[tuple[str, float | None]]:
    asked = {(one.task.norm, one.task.eps) for one in measured if one.task.eps is not None}
    return [*sorted(asked, key=lambda pair: (pair[0], pair[1] or 0)), ("any", None)]


def _within(measured: Sequence[Measured], norm: str, eps: float | None) -> list[Measured]:
    """The attacks of that norm up to that eps, of each kind of knowledge that was run at that very eps."""
    known = {one.task.knowledge for one in measured if one.task.norm == norm and one.task.eps == eps}
    return [one for one in measured if one.task.knowledge in known and _fits(one.task, norm, eps)]


def _fits(task: Task, norm: str, eps: float | None) -> bool:
    return task.norm == norm and task.eps is not None and eps is not None and task.eps <= eps


def _worst(
    measured: Sequence[Measured], detector: str, promise: float, *, seed: int, norm: str, eps: float | None
) -> Row:
    wrong = [~one.part.right for one in measured]
    p_values = [one.part.p_values[detector] for one in measured]

    def through(rate: float) -> float | None:
        pairs = zip(wrong, p_values, strict=True)
        return metrics.share(np.any([lost & ~metrics.flagged(p_value, rate) for lost, p_value in pairs], axis=0))

    at_promise = through(promise)
    return {
        "seed": seed,
        "norm": norm,
        "eps": eps,
        "detector": detector,
        "attacks": sorted({one.task.name for one in measured}),
        "knowledge": "full" if any(one.task.knowledge == "full" for one in measured) else "zero",
        "num_images": len(wrong[0]),
        "robust_accuracy": metrics.share(~np.any(wrong, axis=0)),
        "robust_accuracy_with_rejection": None if at_promise is None else 1 - at_promise,
        "sr_at_1": through(0.01),
        "sr_at_5": through(0.05),
        "sr_at_50": through(0.5),
    }


CELL = (
    "group",
    "attack",
    "eps",
    "norm",
    "steps",
    "severity",
    "knowledge",
    "restarts",
    "targeted",
    "detector",
)


def cell_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What names a row but for its seed."""
    return tuple(row[name] for name in CELL)


def over_seeds(rows: Iterable[Row]) -> list[Row]:
    """Mean, least and most of each figure over the seeds; one entry a cell, in the order of the rows."""
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        cells.setdefault(cell_of(row), []).append(row)
    return [{**dict(zip(CELL, cell, strict=True)), **_spread(members)} for cell, members in cells.items()]


def _spread(rows: Sequence[Row]) -> Row:
    found: Row = {"seeds": [row["seed"] for row in rows]}
    for name in (*FIGURES, "seconds"):
        values = [row[name] for row in rows if row[name] is not None]
        found[name] = {"mean": sum(values) / len(values), "min": min(values), "max": max(values)} if values else None
    return found
