"""Every training that a comparison asks for, in order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from detectors.comparison.settings import SEED, Comparison, ComparisonError, Experiment, Value
from model.config import Config, parse_config
from model.losses.known import GAUSSIAN
from model.overrides import set_value, with_loss

FITTED = ", fitted"


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """One training: what varies in it, its seed, and its whole configuration.

    fitted: judged by diagonal Gaussians fitted after training although the loss has Gaussians of its own; the
    training is that of the run of the same name without it.
    """

    experiment: Experiment
    training: str
    seed: int
    grid: dict[str, Value]
    config: Config
    fitted: bool = False

    @property
    def variant(self) -> str:
        """Its name among the seeds' rows."""
        return f"{self.training}{FITTED}" if self.fitted else self.training

    @property
    def key(self) -> str:
        """Its place below the output's folders."""
        return _key(self.experiment, self.variant, self.seed)

    @property
    def training_key(self) -> str:
        """That of the training that it judges."""
        return _key(self.experiment, self.training, self.seed)


def _key(experiment: Experiment, variant: str, seed: int) -> str:
    plain = variant.replace(" ", "_").replace("=", "-").replace(",", "")
    return f"{experiment.name}/{plain}-seed{seed}"


def plan(comparison: Comparison, output: Path, *, only: Sequence[str] = ()) -> list[Run]:
    """Every training, in order. Raises ConfigurationError for one that cannot be, before any is started."""
    known = [experiment.name for experiment in comparison.experiments]
    if len(set(known)) < len(known):
        raise ComparisonError(f"experiments need names of their own, got {', '.join(known)}")
    for name in only:
        if name not in known:
            raise ComparisonError(f"there is no experiment {name!r}; there are {', '.join(known)}")
    chosen = [experiment for experiment in comparison.experiments if not only or experiment.name in only]
    return [run for experiment in chosen for run in _runs(experiment, comparison.training, output)]


def _runs(experiment: Experiment, training: Mapping[str, Any], output: Path) -> Iterator[Run]:
    for name in experiment.options:
        if name not in experiment.losses:
            raise ComparisonError(f"experiment {experiment.name}: options for {name}, which is not among its losses")
    seen: dict[tuple[str, int], str] = {}
    for loss, values in product(experiment.losses, product(*experiment.grid.values())):
        point = dict(zip(experiment.grid, values, strict=True))
        variant = " ".join([loss, *(f"{key.rpartition('.')[2]}={value}" for key, value in point.items())])
        runs = []
        for seed in experiment.seeds:
            changes = {**experiment.changes, **experiment.options.get(loss, {}), **point}
            if loss == "distillation":
                changes["loss.teacher"] = _teacher(experiment, seen, seed, output)
            config = _configured(experiment, training, loss, {**changes, SEED: seed})
            run = Run(experiment=experiment, training=variant, seed=seed, grid=point, config=config)
            seen[variant, seed] = run.key
            runs.append(run)
        if len(runs[0].config.data.left_out) == 1:
            raise ComparisonError(
                f"experiment {experiment.name}: data.left_out must name two classes or more, to pair"
            )
        yield from runs
        if experiment.fitted and loss in GAUSSIAN:
            yield from (replace(run, fitted=True) for run in runs)
    variants = list(dict.fromkeys(variant for variant, _ in seen))
    if experiment.reference is not None and experiment.reference not in variants:
        raise ComparisonError(
            f"experiment {experiment.name}: reference {experiment.reference!r} is none of {', '.join(variants)}"
        )


def _configured(experiment: Experiment, training: Mapping[str, Any], loss: str, changes: Mapping[str, Any]) -> Config:
    values = with_loss({**training, "name": experiment.name}, loss)
    for key, value in changes.items():
        values = set_value(values, key, value)
    return parse_config(values)


def _teacher(experiment: Experiment, seen: Mapping[tuple[str, int], str], seed: int, output: Path) -> str:
    if (experiment.teacher, seed) not in seen:
        raise ComparisonError(
            f"experiment {experiment.name}: distillation's teacher {experiment.teacher} must come before it in losses"
        )
    return str(training_folder(output, seen[experiment.teacher, seed]))


def training_folder(output: Path, key: str) -> Path:
    """Where the run of this training key is trained."""
    return output / "runs" / key
