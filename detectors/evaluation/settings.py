"""What an evaluation is asked to do, checked before any work, and the tasks that it comes to."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from typing import Literal

from detectors.evaluation.adaptive import ADAPTIVE, ADAPTIVE_STEPS, check_adaptive
from detectors.evaluation.attacks import ATTACKS, AttackError, check_attack
from detectors.evaluation.corruptions import CORRUPTIONS
from model.errors import LGMGuardError

Group = Literal["attack", "corruption", "foreign"]
Knowledge = Literal["zero", "full", "none"]


class EvaluationError(LGMGuardError):
    """An evaluation that cannot be run as asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What is asked. eps in units of images in [0, 1]; eps_l2 is the budget of attacks with an l2 norm.

    steps: numbers of steps for attacks that follow gradients, each run on its own; theirs where empty.
    limit: images a seed, drawn from the test set by that seed. curve: eps of attacks that do not know the detector
    goes on until their success saturates.
    """

    data: str
    attacks: tuple[str, ...] = ()
    eps: tuple[float, ...] = ()
    eps_l2: tuple[float, ...] = ()
    steps: tuple[int, ...] = ()
    adaptive: tuple[str, ...] = ()
    restarts: int = 1
    corruptions: tuple[str, ...] = ()
    severities: tuple[int, ...] = (1, 2, 3, 4, 5)
    foreign: tuple[str, ...] = ()
    targeted: bool = False
    curve: bool = False
    limit: int | None = None
    batch_size: int = 128
    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        _check_names(self)
        _check_numbers(self)
        _check_heeded(self)
        for task in plan(self):
            check_task(task)

    def fingerprint(self, *facts: str) -> str:
        """Names this evaluation, with the facts that it depends on beside the settings."""
        content = json.dumps([asdict(self), facts], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One row's worth of images: an attack at one eps, a corruption at one severity, a foreign set."""

    group: Group
    name: str
    knowledge: Knowledge
    norm: str
    seed: int
    eps: float | None = None
    steps: int | None = None
    severity: int | None = None
    restarts: int | None = None
    targeted: bool = False
    on_curve: bool = False

    @property
    def key(self) -> str:
        """A file name of its own."""
        settled = asdict(self)
        digest = hashlib.sha256(json.dumps(settled, sort_keys=True).encode()).hexdigest()[:10]
        readable = "".join(letter if letter.isalnum() or letter in "-." else "_" for letter in self.name)[-40:]
        return f"{self.group}-{readable}-seed{self.seed}-{digest}"

    @property
    def title(self) -> str:
        """For a person: the name with what sets it apart from its siblings."""
        return self.name if self.severity is None else f"{self.name}, severity {self.severity}"

    @property
    def cost(self) -> int:
        """Roughly how many passes an image takes; for the time left alone."""
        ascents = ADAPTIVE[self.name].num_ascents(self.restarts or 1) if self.knowledge == "full" else 1
        return 1 + (self.steps or 1) * ascents


def plan(settings: Settings) -> list[Task]:
    """Every task, in the order of running: seed by seed, weak knowledge first."""
    makers = (_attack_tasks, _adaptive_tasks, _corruption_tasks, _foreign_tasks)
    return [task for seed in settings.seeds for make in makers for task in make(settings, seed)]


def check_task(task: Task) -> None:
    """Raises AttackError or EvaluationError for a task that cannot be run."""
    if task.group == "attack" and task.knowledge == "zero":
        check_attack(task.name, task.eps, targeted=task.targeted)
    elif task.group == "attack":
        check_adaptive(task.name, task.eps)


def _attack_tasks(settings: Settings, seed: int) -> Iterator[Task]:
    for name in settings.attacks:
        spec = ATTACKS[name]
        asked = settings.steps if spec.white_box and spec.steps is not None else ()
        for eps, steps in product(_budgets(settings, spec.norm), asked or (spec.steps,)):
            yield Task(
                group="attack",
                name=name,
                knowledge="zero",
                norm=spec.norm,
                seed=seed,
                eps=eps,
                steps=steps,
                targeted=settings.targeted,
            )


def _budgets(settings: Settings, norm: str) -> Iterable[float | None]:
    if norm == "none":
        return (None,)
    return sorted(settings.eps_l2 or settings.eps if norm == "l2" else settings.eps)


def _adaptive_tasks(settings: Settings, seed: int) -> Iterator[Task]:
    steps = settings.steps or (ADAPTIVE_STEPS,)
    for name, eps, step in product(settings.adaptive, sorted(settings.eps), steps):
        yield Task(
            group="attack",
            name=name,
            knowledge="full",
            norm="linf",
            seed=seed,
            eps=eps,
            steps=step,
            restarts=settings.restarts,
        )


def _corruption_tasks(settings: Settings, seed: int) -> Iterator[Task]:
    for name, severity in product(settings.corruptions, settings.severities):
        yield Task(group="corruption", name=name, knowledge="none", norm="none", seed=seed, severity=severity)


def _foreign_tasks(settings: Settings, seed: int) -> Iterator[Task]:
    for name in settings.foreign:
        yield Task(group="foreign", name=name, knowledge="none", norm="none", seed=seed)


def _check_names(settings: Settings) -> None:
    known: dict[str, Mapping[str, object]] = {
        "attack": ATTACKS,
        "adaptive attack": ADAPTIVE,
        "corruption": CORRUPTIONS,
    }
    asked = (settings.attacks, settings.adaptive, settings.corruptions)
    for (kind, table), names in zip(known.items(), asked, strict=True):
        for name in names:
            if name not in table:
                raise AttackError(f"unknown {kind} {name!r}; there are {', '.join(table)}")
    for kind in ("attacks", "eps", "eps_l2", "steps", "adaptive", "corruptions", "foreign", "seeds"):
        values = getattr(settings, kind)
        if len(set(values)) < len(values):
            raise EvaluationError(f"{kind} names something twice: {', '.join(map(str, values))}")


def _check_numbers(settings: Settings) -> None:
    budgeted = [name for name in settings.attacks if ATTACKS[name].norm == "linf"] + list(settings.adaptive)
    budgeted += [name for name in settings.attacks if ATTACKS[name].norm == "l2" and not settings.eps_l2]
    if budgeted and not settings.eps:
        raise AttackError(f"{budgeted[0]} needs a budget: give --eps, in units of images in [0, 1]")
    _check_range("limit", () if settings.limit is None else (settings.limit,), 1, None)
    _check_range("batch size", (settings.batch_size,), 1, None)
    _check_range("steps", settings.steps, 1, None)
    _check_range("restarts", (settings.restarts,), 1, None)
    _check_range("severity", settings.severities, 1, 5)
    _check_range("seed", settings.seeds, 0, 2**31 - 1)
    if not settings.seeds or (settings.corruptions and not settings.severities):
        raise EvaluationError("at least one seed and one severity are needed")


def _check_heeded(settings: Settings) -> None:
    """What is asked for must be there to be asked of."""
    if settings.targeted and settings.adaptive:
        raise EvaluationError(
            f"targeted: {settings.adaptive[0]} seeks any wrong class that is not flagged; run it without --targeted"
        )
    given = {"targeted": settings.targeted, "steps": settings.steps, "eps": settings.eps, "eps_l2": settings.eps_l2}
    unheeded = [name for name, value in given.items() if value]
    if unheeded and not (settings.attacks or settings.adaptive):
        raise EvaluationError(f"{unheeded[0]} is given, but no attack; name some by --attacks or --adaptive")


def _check_range(name: str, values: Iterable[int], least: int, most: int | None) -> None:
    for value in values:
        if value < least or (most is not None and value > most):
            limit = f"at least {least}" if most is None else f"from {least} to {most}"
            raise EvaluationError(f"{name} must be {limit}, got {value}")
