"""The loss of a run: its name, its options, and the schedules of L-GM's margin and weight."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag
from pydantic.dataclasses import dataclass

from model.errors import ConfigurationError
from model.fields import CHECKED, Count, NonNegative, Positive
from model.losses import known
from model.schedule import AddUp, Constant, LinearRamp, Schedule, StepUp


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class SteppedConfig:
    """step-up multiplies by gamma, add-up adds gamma, every so many training steps, clamped."""

    policy: Literal["step-up", "add-up"]
    start: NonNegative
    gamma: NonNegative
    every: Count
    minimum: NonNegative = 0.0
    maximum: NonNegative = 1e9

    def __post_init__(self) -> None:
        if self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum:g} is above maximum {self.maximum:g}")


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class RampConfig:
    """A straight line from start to stop over the first epochs."""

    policy: Literal["linear"]
    start: NonNegative
    stop: NonNegative
    epochs: Positive


def _kind(value: Any) -> str | None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "number"
    return value.get("policy") if isinstance(value, dict) else getattr(value, "policy", None)


ScheduleConfig = Annotated[
    Annotated[NonNegative, Tag("number")]
    | Annotated[SteppedConfig, Tag("step-up")]
    | Annotated[SteppedConfig, Tag("add-up")]
    | Annotated[RampConfig, Tag("linear")],
    Discriminator(
        _kind,
        custom_error_type="schedule",
        custom_error_message="must be a number of zero or more, or a table whose policy is step-up, add-up or linear",
    ),
]


@dataclass(frozen=True, kw_only=True, slots=True, config=CHECKED)
class LossConfig:
    """Which loss (see model/losses/known.py) and its options.

    alpha, lambda: L-GM's margin and likelihood weight, numbers or schedules. block_size: its classes at a time, for
    many classes. The others are rivals' options; None leaves a loss its own default, and what a loss does not have
    is refused. teacher: a finished checkpoint.
    """

    name: str = known.DEFAULT
    alpha: ScheduleConfig = 0.1
    lambda_: ScheduleConfig = Field(default=0.1, alias="lambda")
    block_size: Count | None = None
    margin: NonNegative | None = None
    second_margin: NonNegative | None = None
    scale: Positive | None = None
    temperature: Positive | None = None
    smoothing: NonNegative | None = None
    noise: NonNegative | None = None
    weight: NonNegative | None = None
    centre_rate: NonNegative | None = None
    epsilon: Positive | None = None
    annealing: NonNegative | None = None
    decay: NonNegative | None = None
    teacher: str | None = None

    def __post_init__(self) -> None:
        schedules = {name for name, value in (("alpha", self.alpha), ("lambda", self.lambda_)) if value != 0.1}
        blocks = set() if self.block_size is None else {"block_size"}
        known.check_options(self.name, schedules | blocks | self.options.keys())
        if self.name == "distillation" and self.teacher is None:
            raise ConfigurationError("loss.teacher: distillation needs a finished checkpoint to learn from")

    @property
    def options(self) -> dict[str, float | str]:
        """The rival's options that were given."""
        return {name: value for name in known.RIVAL_OPTIONS if (value := getattr(self, name)) is not None}


def build_schedule(config: ScheduleConfig, steps_per_epoch: int) -> Schedule:
    """The schedule over training steps that a number or a table stands for."""
    match config:
        case RampConfig(start=start, stop=stop, epochs=epochs):
            return LinearRamp(start=start, stop=stop, num_steps=max(1, round(epochs * steps_per_epoch)))
        case SteppedConfig():
            kind = StepUp if config.policy == "step-up" else AddUp
            return kind(
                start=config.start,
                gamma=config.gamma,
                every=config.every,
                minimum=config.minimum,
                maximum=config.maximum,
            )
        case value:
            return Constant(value)
