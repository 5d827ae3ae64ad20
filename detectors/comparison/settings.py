"""A comparison as a TOML file tells it: which losses, on what, how often, under which attacks."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Annotated, Any

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from detectors.evaluation.attacks import check_attack
from model.config import Config, parse_config
from model.errors import ConfigurationError, LGMGuardError
from model.losses.known import GAUSSIAN
from model.overrides import set_value, with_loss

_checked = ConfigDict(extra="forbid")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Seeds = Annotated[tuple[Annotated[int, Field(ge=0, strict=True)], ...], Field(min_length=1)]
FITTED = ", fitted"
Value = float | int | str | bool | tuple[str, ...]


class ComparisonError(LGMGuardError):
    """A comparison that cannot be run; its message names what is wrong and what would be right."""


@dataclass(frozen=True, kw_only=True, slots=True, config=_checked)
class Abnormal:
    """What is to be told from clean test images: attacks at eps, images of no class; limit: so many images of each.

    eps in units of [0, 1]; steps of attacks that iterate, their own default where not given. num_pairs: of
    the verification protocol, where classes are left out.
    """

    attacks: tuple[str, ...] = ()
    eps: Annotated[float, Field(gt=0, le=1)] = 0.1
    steps: Annotated[int, Field(ge=1)] | None = None
    foreign: tuple[str, ...] = ()
    limit: Annotated[int, Field(ge=10)] = 1000
    num_pairs: Annotated[int, Field(ge=20, multiple_of=20)] = 2000

    def __post_init__(self) -> None:
        for name in self.attacks:
            check_attack(name, self.eps)


@dataclass(frozen=True, kw_only=True, slots=True, config=_checked)
class Experiment:
    """Losses x grid x seeds. changes: of the training table, as table.key = value, for all; options: for one loss.

    reference: the variant that others are tested against, by its name; the last loss where not given. distillation's
    teacher is the run of the loss `teacher` with the same seed, which comes before it. fitted: judge the networks of
    gm and lgm once more by Gaussians fitted after training, as those of all other losses are judged.
    """

    name: Name
    title: str
    losses: Annotated[tuple[str, ...], Field(min_length=1)]
    question: str = ""
    seeds: Seeds = (0,)
    changes: dict[str, Value] = Field(default_factory=dict)
    options: dict[str, dict[str, Value]] = Field(default_factory=dict)
    grid: dict[str, Annotated[tuple[Value, ...], Field(min_length=1)]] = Field(default_factory=dict)
    reference: str | None = None
    teacher: str = "softmax"
    fitted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, config=_checked)
class Comparison:
    """The whole file. training: a training configuration (see model/configs) without name and loss."""

    name: Name
    training: dict[str, Any]
    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    abnormal: Abnormal = Field(default_factory=Abnormal)


@plain(frozen=True, kw_only=True, slots=True)
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


def load_comparison(path: Path) -> Comparison:
    """Read the file. Raises ConfigurationError naming each key that is wrong."""
    try:
        return TypeAdapter(Comparison).validate_python(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}" for problem in error.errors()]
        raise ConfigurationError("comparison refused: " + "; ".join(problems)) from None


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
            config = _configured(experiment, training, loss, {**changes, "training.seed": seed})
            run = Run(experiment=experiment, training=variant, seed=seed, grid=point, config=config)
            seen[variant, seed] = run.key
            runs.append(run)
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
