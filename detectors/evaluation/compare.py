"""Two evaluations side by side: the differences with their intervals."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from detectors.evaluation import metrics, pairs
from detectors.evaluation.metrics import Interval
from detectors.evaluation.pairs import Side
from detectors.evaluation.results import Results
from detectors.evaluation.settings import EvaluationError
from detectors.evaluation.summaries import cell_of

LEVEL = 0.95
# figure -> the number of images that it is a share of; AUROC brings its own interval
SHARES = {
    "attacked_accuracy": "num_adversarial",
    "tpr_at_fpr_5": "num_judged",
    "tpr_at_fpr_1": "num_judged",
    "sr_at_5": "num_adversarial",
    "robust_accuracy_with_rejection": "num_adversarial",
    "realised_false_alarm_rate": "num_clean",
}
TITLES = {
    "attacked_accuracy": "accuracy",
    "auroc": "AUROC",
    "tpr_at_fpr_5": "TPR@5%",
    "tpr_at_fpr_1": "TPR@1%",
    "sr_at_5": "SR@5",
    "robust_accuracy_with_rejection": "right or flagged",
    "realised_false_alarm_rate": "false alarms",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """One figure of one row in both runs: first, second, second - first and its 95 % interval.

    paired: the interval is from pairs of the same image, not of two runs taken for independent.
    """

    attack: str
    eps: float | None
    steps: int | None
    knowledge: str
    severity: int | None
    detector: str
    seed: int
    figure: str
    first: float
    second: float
    difference: float
    interval: Interval
    paired: bool

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return not self.interval[0] <= 0 <= self.interval[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Both runs' facts, what they have in common, and what makes them hard to compare."""

    first: Mapping[str, Any]
    second: Mapping[str, Any]
    differences: list[Difference]
    cautions: list[str]

    @property
    def method(self) -> str:
        """Where the intervals come from, in words."""
        paired, count = sum(found.paired for found in self.differences), len(self.differences)
        apart = "treat the two runs as independent, which on the same images is wider than need be"
        together = "are from pairs of the same image: each run's own, joined by the correlation (Newcombe 1998)"
        if paired == count:
            return f"Intervals {together}."
        return f"{paired} of {count} intervals {together}; the others {apart}." if paired else f"Intervals {apart}."


def compare(first: Results, second: Results) -> Comparison:
    """Every row that both have. Raises EvaluationError where they share none.

    Of runs on the same images whose parts are still there intervals are from pairs.
    """
    theirs = {(*cell_of(row), row["seed"]): row for row in second.content["rows"]}
    shared = [(row, theirs[key]) for row in first.content["rows"] if (key := (*cell_of(row), row["seed"])) in theirs]
    if not shared:
        raise EvaluationError(
            "the two results share no row: nothing was run with the same attack, eps and seed in both"
        )
    return Comparison(
        first=first.content,
        second=second.content,
        differences=[found for rows in shared for found in _differences(*rows, _correlations(first, second, *rows))],
        cautions=list(_cautions(first.content, second.content, len(shared))),
    )


def _differences(
    first: Mapping[str, Any], second: Mapping[str, Any], correlations: Mapping[str, float]
) -> Iterator[Difference]:
    for figure in TITLES:
        intervals = [_interval(row, figure) for row in (first, second)]
        if intervals[0] is None or intervals[1] is None:
            continue
        told = first[figure], intervals[0], second[figure], intervals[1]
        paired = figure in correlations
        yield Difference(
            **{name: first[name] for name in ("attack", "eps", "steps", "knowledge", "severity", "detector", "seed")},
            figure=figure,
            first=first[figure],
            second=second[figure],
            difference=second[figure] - first[figure],
            interval=pairs.paired_interval(*told, correlation=correlations[figure])
            if paired
            else metrics.difference_interval(*told),
            paired=paired,
        )


def _correlations(
    first: Results, second: Results, row: Mapping[str, Any], other: Mapping[str, Any]
) -> dict[str, float]:
    """None unless both drew the same number of images from the same test set; rows are of the same seed."""
    if any(first.content["data"][name] != second.content["data"][name] for name in ("digest", "num_a_seed")):
        return {}
    sides = [
        Side(row=told, folder=run.folder, promise=run.content["bundle"]["false_alarm_rate"])
        for run, told in ((first, row), (second, other))
    ]
    return pairs.correlations(*sides)


def _interval(row: Mapping[str, Any], figure: str) -> Interval | None:
    value = row[figure]
    if value is None:
        return None
    if figure == "auroc":
        low, high = row["auroc_interval"]
        return min(low, value), max(high, value)
    count = row[SHARES[figure]]
    return metrics.wilson_interval(round(value * count), count, level=LEVEL)


def _cautions(first: Mapping[str, Any], second: Mapping[str, Any], num_shared: int) -> Iterator[str]:
    if first["data"]["digest"] != second["data"]["digest"]:
        yield "The two were measured on different test images."
    if first["data"]["num_a_seed"] != second["data"]["num_a_seed"]:
        yield "The two were measured on different numbers of images."
    if first["bundle"]["false_alarm_rate"] != second["bundle"]["false_alarm_rate"]:
        yield "The two promise different false-alarm rates: compare TPR and SR, not false alarms or what is flagged."
    for name, results in (("first", first), ("second", second)):
        left = len(results["rows"]) - num_shared
        if left:
            yield f"{left} rows of the {name} have no counterpart and are left out."
        if any(check["level"] == "refuse" for check in results["checks"]):
            yield f"Self-checks refuse the figures of the {name}: do not rely on them."
