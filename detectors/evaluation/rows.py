"""Parts -> the rows of results.json and the figures of clean images."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from detectors.evaluation import metrics
from detectors.evaluation.parts import Part
from detectors.evaluation.settings import Task

LEVEL = 0.99  # of the intervals of false alarms
RATES = (0.01, 0.05)  # at which detection is told, and so are false alarms
Row = dict[str, Any]
SCHEMA = (  # what every row begins with, whoever reads it
    "attack",
    "eps",
    "norm",
    "steps",
    "knowledge",
    "detector",
    "num_clean",
    "num_adversarial",
    "num_successful",
    "clean_accuracy",
    "attacked_accuracy",
    "auroc",
    "auroc_interval",
    "tpr_at_fpr_5",
    "tpr_at_fpr_1",
    "realised_false_alarm_rate",
    "sr_at_5",
    "seconds",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A finished task with the clean images of its seed; keeps_class: mild enough to leave the class clear."""

    task: Task
    part: Part
    clean: Part
    keeps_class: bool | None = None

    @property
    def successful(self) -> np.ndarray:
        """Classified right before and wrong after; of foreign images, which have no right class, all."""
        if self.task.group == "foreign":
            return np.ones(len(self.part.labels), dtype=bool)
        return np.asarray(self.clean.right & ~self.part.right)

    @property
    def num_on_target(self) -> int | None:
        """Of the successful, those that became the class that was aimed at; None where none was."""
        if self.part.targets is None:
            return None
        return int((self.successful & (self.part.predictions == self.part.targets)).sum())

    @property
    def judged(self) -> np.ndarray:
        """Whom the main figures are of: an attack's successful images, else all images."""
        return self.successful if self.task.group == "attack" else np.ones(len(self.part.labels), dtype=bool)


def make_rows(measured: Measured, *, promise: float) -> list[Row]:
    """One row for each detector, the verdict (`fused`) first."""
    return [_row(measured, name, promise) for name in measured.part.detectors]


def _row(measured: Measured, detector: str, promise: float) -> Row:
    task, part, clean = measured.task, measured.part, measured.clean
    accuracy = None if task.group == "foreign" else metrics.share(part.right)
    found = {
        "attack": task.name,
        "eps": task.eps,
        "norm": task.norm,
        "steps": task.steps,
        "knowledge": task.knowledge,
        "detector": detector,
        "num_clean": len(clean.labels),
        "num_adversarial": len(part.labels),
        "num_successful": int(measured.successful.sum()),
        "clean_accuracy": metrics.share(clean.right),
        "attacked_accuracy": accuracy,
        **_separation(measured, detector),
        **_rejection(measured, detector, promise),
        "seconds": part.seconds,
        "attack_seconds": part.attack_seconds,
        "group": task.group,
        "seed": task.seed,
        "severity": task.severity,
        "keeps_class": measured.keeps_class,
        "restarts": task.restarts,
        "targeted": task.targeted,
        "num_on_target": measured.num_on_target,
        "on_curve": task.on_curve,
        "num_clean_right": int(clean.right.sum()),
        "mean_perturbation": part.perturbation or None,
    }
    return {name: found[name] for name in SCHEMA} | found


def _separation(measured: Measured, detector: str) -> Row:
    """Scores and p-values of clean images that are classified right against those judged."""
    clean, part, judged = measured.clean, measured.part, measured.judged
    scores, p_values = part.scores[detector], part.p_values[detector]
    clean_scores, clean_p = clean.scores[detector][clean.right], clean.p_values[detector][clean.right]
    return {
        "auroc": metrics.auroc(clean_scores, scores[judged]),
        "auroc_interval": metrics.auroc_interval(clean_scores, scores[judged]),
        "tpr_at_fpr_5": metrics.share(metrics.flagged(p_values[judged], 0.05)),
        "tpr_at_fpr_1": metrics.share(metrics.flagged(p_values[judged], 0.01)),
        "num_judged": int(judged.sum()),
        "auroc_all": metrics.auroc(clean_scores, scores),
        "auroc_of_p_values": metrics.auroc(-clean_p, -p_values[judged]),
        "tpr_all_at_fpr_5": metrics.share(metrics.flagged(p_values, 0.05)),
        "tpr_all_at_fpr_1": metrics.share(metrics.flagged(p_values, 0.01)),
    }


def _rejection(measured: Measured, detector: str, promise: float) -> Row:
    """What gets through, and what is flagged of clean images at the same thresholds."""
    p_values, clean_p = measured.part.p_values[detector], measured.clean.p_values[detector]
    wrong = ~measured.part.right
    flagged = metrics.flagged(p_values, promise)
    kept_right = measured.part.right & flagged
    return {
        "realised_false_alarm_rate": metrics.share(metrics.flagged(clean_p, promise)),
        "realised_at_5": metrics.share(metrics.flagged(clean_p, 0.05)),
        "realised_at_1": metrics.share(metrics.flagged(clean_p, 0.01)),
        **{f"sr_at_{rate}": metrics.share(wrong & ~metrics.flagged(p_values, rate / 100)) for rate in (1, 5, 50)},
        "robust_accuracy_with_rejection": metrics.share(~wrong | flagged),
        "flagged_share": metrics.share(flagged),
        "needless_flag_rate": metrics.share(kept_right) if measured.keeps_class else None,
    }


def clean_figures(clean: Part, seed: int, labels: Sequence[str], *, promise: float) -> list[Row]:
    """False alarms of each detector on clean test images, were its promise the bundle's (first), or one of RATES."""
    rates = dict.fromkeys((promise, *RATES))
    return [_clean_row(clean, seed, labels, name, rate) for rate in rates for name in clean.detectors]


def _clean_row(clean: Part, seed: int, labels: Sequence[str], detector: str, rate: float) -> Row:
    """Overall and by predicted class, with intervals."""
    flagged = metrics.flagged(clean.p_values[detector], rate)
    return {
        "detector": detector,
        "seed": seed,
        "num_images": len(flagged),
        "accuracy": metrics.share(clean.right),
        "accuracy_with_rejection": metrics.share(clean.right[~flagged]),
        "right_and_unflagged": metrics.share(clean.right & ~flagged),
        "promise": rate,
        "overall": _alarms(flagged),
        "by_class": {name: _alarms(flagged[clean.predictions == index]) for index, name in enumerate(labels)},
    }


def _alarms(flagged: np.ndarray) -> Row:
    hits = int(flagged.sum())
    return {
        "num_images": len(flagged),
        "num_flagged": hits,
        "share": metrics.share(flagged),
        "interval": metrics.share_interval(hits, len(flagged), level=LEVEL),
    }
