"""Schedules of the margin alpha and the likelihood weight lambda over training steps.

The policies and their names follow the authors' published layer (CONSTANT, STEPUP, ADDUP) and the linear
ramp of their journal version (TPAMI 2023). A schedule is a pure function of the step, so whoever
saves the step can resume it.
"""

import math
from dataclasses import dataclass
from numbers import Real
from typing import Protocol, runtime_checkable

from model.errors import ConfigurationError


@runtime_checkable
class Schedule(Protocol):
    """A value, zero or more, for every training step from 0 on."""

    def __call__(self, step: int) -> float: ...


@dataclass(frozen=True, slots=True)
class Constant:
    """The same value at every step."""

    value: float

    def __post_init__(self) -> None:
        check_value("value", self.value)

    def __call__(self, step: int) -> float:
        return self.value


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stepped:
    start: float
    gamma: float
    every: int
    minimum: float = 0.0
    maximum: float = math.inf

    def __post_init__(self) -> None:
        check_value("start", self.start)
        check_value("minimum", self.minimum)
        if self.every < 1:
            raise ConfigurationError(f"every must be at least 1 step, got {self.every}")
        if not self.minimum <= self.maximum:
            raise ConfigurationError(f"minimum {self.minimum} is above maximum {self.maximum}")
        if not math.isfinite(self.gamma) or self.gamma < 0:
            raise ConfigurationError(f"gamma must be zero or more, got {self.gamma}")

    def clamp(self, value: float) -> float:
        return min(max(value, self.minimum), self.maximum)


@dataclass(frozen=True, kw_only=True, slots=True)
class StepUp(_Stepped):
    """STEPUP: start * gamma^floor(step / every), clamped to [minimum, maximum]."""

    def __call__(self, step: int) -> float:
        if self.start == 0:
            return self.clamp(0.0)  # whatever the power overflows to
        try:
            return self.clamp(self.start * self.gamma ** (step // self.every))
        except OverflowError:
            return self.maximum


@dataclass(frozen=True, kw_only=True, slots=True)
class AddUp(_Stepped):
    """ADDUP: start + gamma * floor(step / every), clamped to [minimum, maximum]."""

    def __call__(self, step: int) -> float:
        return self.clamp(self.start + self.gamma * (step // self.every))


@dataclass(frozen=True, kw_only=True, slots=True)
class LinearRamp:
    """From start at step 0 in a straight line to stop at step num_steps, stop ever after."""

    start: float
    stop: float
    num_steps: int

    def __post_init__(self) -> None:
        check_value("start", self.start)
        check_value("stop", self.stop)
        if self.num_steps < 1:
            raise ConfigurationError(f"num_steps must be at least 1, got {self.num_steps}")

    def __call__(self, step: int) -> float:
        share = min(step / self.num_steps, 1.0)
        return (1.0 - share) * self.start + share * self.stop


def as_schedule(value: float | int | Schedule) -> Schedule:
    """A number stands for a constant schedule. Raises ConfigurationError for what is neither."""
    if isinstance(value, Real):
        return Constant(float(value))
    if not isinstance(value, Schedule):
        raise ConfigurationError(f"a schedule is a number or a function of the step, got {type(value).__name__}")
    return value


def check_value(name: str, value: float) -> None:
    """Raises ConfigurationError for what is no coefficient: below zero, infinite or not a number."""
    if not (math.isfinite(value) and value >= 0):
        raise ConfigurationError(f"{name} must be a finite number of zero or more, got {value}")
