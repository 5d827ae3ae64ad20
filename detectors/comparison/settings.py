"""A comparison as a TOML file tells it: which losses, on what, how often, under which attacks."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass

from detectors.evaluation.attacks import check_attack
from detectors.measuring import check_abnormal
from model.errors import ConfigurationError, LGMGuardError
from model.overrides import apply

_checked = ConfigDict(extra="forbid")
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]


Value = float | int | str | bool | tuple[str, ...]
Member = TypeVar("Member")
Table = TypeVar("Table", bound=Mapping[str, Any])
SEED = "training.seed"


def _distinct(values: tuple[Member, ...]) -> tuple[Member, ...]:
    for place, value in enumerate(values):
        if value in values[:place]:
            raise ValueError(f"{value!r} twice is the same run twice")
    return values


def _seedless(changes: Table) -> Table:
    if SEED in changes:
        raise ValueError(f"{SEED} is set by the experiment's seeds; list them there")
    return changes


Several = Annotated[tuple[Member, ...], Field(min_length=1), AfterValidator(_distinct)]
Changes = Annotated[dict[str, Value], AfterValidator(_seedless)]


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
        for name in self.foreign:
            check_abnormal(name)


@dataclass(frozen=True, kw_only=True, slots=True, config=_checked)
class Experiment:
    """Losses x grid x seeds. changes: of the training table, as table.key = value, for all; options: for one loss.

    reference: the variant that others are tested against, by its name; the last loss where not given. distillation's
    teacher is the run of the loss `teacher` with the same seed, which comes before it. fitted: judge the networks of
    gm and lgm once more by Gaussians fitted after training, as those of all other losses are judged.
    """

    name: Name
    title: str
    losses: Several[str]
    question: str = ""
    seeds: Several[Annotated[int, Field(ge=0, strict=True)]] = (0,)
    changes: Changes = Field(default_factory=dict)
    options: dict[str, Changes] = Field(default_factory=dict)
    grid: Annotated[dict[str, Several[Value]], AfterValidator(_seedless)] = Field(default_factory=dict)
    reference: str | None = None
    teacher: str = "softmax"
    fitted: bool = False


@dataclass(frozen=True, kw_only=True, slots=True, config=_checked)
class Comparison:
    """The whole file. training: a training configuration (see model/configs) without name, loss and seed."""

    name: Name
    training: dict[str, Any]
    experiments: Annotated[tuple[Experiment, ...], Field(min_length=1)]
    abnormal: Abnormal = Field(default_factory=Abnormal)


def load_comparison(path: Path, overrides: Sequence[str] = ()) -> Comparison:
    """Read the file, then apply overrides: "abnormal.limit=100", "experiments.NAME.seeds=[0]" for the one so named.

    Raises ConfigurationError naming each key that is wrong.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
        for override in overrides:
            _override(values, override)
        return TypeAdapter(Comparison).validate_python(values)
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path} is not TOML: {error}") from None
    except ValidationError as error:
        raise ConfigurationError("comparison refused: " + "; ".join(_problems(error))) from None


def _problems(error: ValidationError) -> Iterator[str]:
    """A line each. A list is called too short of what was refused in it, which is no fault of its own."""
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        place = problem["loc"]
        if problem["type"] == "too_short" and any(place == other[: len(place)] != other for other in places):
            continue
        said = problem["msg"]
        if problem["type"] == "tuple_type":
            said = "must be an array of tables, [[experiments]]" if place == ("experiments",) else "must be an array"
        yield f"{'.'.join(map(str, place))}: {said}"


def _override(values: dict[str, Any], override: str) -> None:
    """As `apply` does; experiments are told by their names, which may hold dots."""
    if not override.startswith("experiments."):
        apply(values, override)
        return
    rest, found = override.removeprefix("experiments."), values.get("experiments")
    named = {str(one.get("name")): one for one in found if isinstance(one, dict)} if isinstance(found, list) else {}
    for name, experiment in named.items():
        if rest.startswith(f"{name}."):
            apply(experiment, rest.removeprefix(f"{name}."))
            return
    raise ComparisonError(
        f"override {override!r} must be experiments.NAME.key=value; NAME is one of {', '.join(named)}"
    )
