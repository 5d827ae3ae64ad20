"""Rows of single runs -> what is said of each variant: means with intervals, ranks, significant differences."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from detectors.comparison import statistics
from detectors.comparison.carrying_out import FAILED
from detectors.comparison.judging import Row
from detectors.comparison.planning import FITTED
from detectors.comparison.settings import Experiment

SIGNIFICANT = 0.05
RANKED = ("accuracy", "detection")
LOWER_IS_BETTER = ("calibration_error", "scatter_ratio", "likelihood_misfit", "training_seconds")
NAMES = ("experiment", "variant", "loss", "seed", FAILED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """A figure of one variant over its seeds: mean, 95 % t-interval, and Holm's p-value against the reference."""

    mean: float
    low: float
    high: float
    p_value: float | None = None

    @property
    def differs(self) -> bool:
        """Whether it differs significantly from the reference's."""
        return self.p_value is not None and self.p_value < SIGNIFICANT


@dataclass(frozen=True, kw_only=True, slots=True)
class Ranking:
    """Mean ranks of the variants in one figure, 1 best; Friedman's p-value; Nemenyi's critical difference."""

    figure: str
    ranks: dict[str, float]
    p_value: float | None
    critical_difference: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """One experiment. variants: figures of each variant; failed: runs that diverged, with their message."""

    experiment: Experiment
    reference: str
    variants: dict[str, dict[str, Figure]]
    rankings: list[Ranking]
    failed: dict[str, str]

    @property
    def figures(self) -> list[str]:
        """Names of all figures, in the order of the rows."""
        return list(dict.fromkeys(name for figures in self.variants.values() for name in figures))


def summarise(experiment: Experiment, rows: Sequence[Row]) -> Summary:
    """What the rows of one experiment say."""
    sound = [row for row in rows if FAILED not in row]
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    reference = experiment.reference or [name for name in variants if not name.endswith(FITTED)][-1]
    ignored = {*NAMES, *experiment.grid}
    names = list(dict.fromkeys(name for row in sound for name in row if name not in ignored))
    values = {name: _by_variant(sound, name) for name in names}
    tested = {name: _p_values(values[name], reference) for name in names}
    found: dict[str, dict[str, Figure]] = {variant: {} for variant in variants}
    for name, of_variant in values.items():
        for variant, by_seed in of_variant.items():
            mean, low, high = statistics.mean_interval(np.array(list(by_seed.values())))
            found[variant][name] = Figure(mean=mean, low=low, high=high, p_value=tested[name].get(variant))
    return Summary(
        experiment=experiment,
        reference=reference,
        variants=found,
        rankings=[ranking for name in RANKED if (ranking := _ranking(name, values.get(name, {}))) is not None],
        failed={f"{row['variant']}, seed {row['seed']}": row[FAILED] for row in rows if FAILED in row},
    )


def _by_variant(rows: Sequence[Row], name: str) -> dict[str, dict[int, float]]:
    """Values by variant and seed; those that are None are left out."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.get(name) is not None:
            found.setdefault(row["variant"], {})[row["seed"]] = row[name]
    return found


def _p_values(values: Mapping[str, Mapping[int, float]], reference: str) -> dict[str, float]:
    """Paired over the seeds that both have, corrected by Holm over the variants."""
    mine = values.get(reference, {})
    found: dict[str, float] = {}
    for variant, theirs in values.items():
        seeds = sorted(mine.keys() & theirs.keys())
        if variant == reference:
            continue
        pairs = [np.array([side[seed] for seed in seeds]) for side in (mine, theirs)]
        p_value = statistics.paired_p_value(*pairs)
        if p_value is not None:
            found[variant] = p_value
    return dict(zip(found, statistics.holm(list(found.values())), strict=True))


def _ranking(name: str, values: Mapping[str, Mapping[int, float]]) -> Ranking | None:
    """None unless two variants or more have a value for the same two seeds or more."""
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in values.values()))) if values else []
    if len(values) < 2 or len(seeds) < 2:
        return None
    table = np.array([[by_seed[seed] for by_seed in values.values()] for seed in seeds])
    ranks = statistics.mean_ranks(-table if name in LOWER_IS_BETTER else table)
    return Ranking(
        figure=name,
        ranks=dict(zip(values, map(float, ranks), strict=True)),
        p_value=statistics.friedman_p_value(table),
        critical_difference=statistics.critical_difference(len(seeds), len(values)),
    )
