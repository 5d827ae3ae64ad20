import math

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.errors import ConfigurationError
from model.schedule import AddUp, Constant, LinearRamp, StepUp, as_schedule


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 0.1), (4_999, 0.1), (5_000, 0.2), (9_999, 0.2), (10_000, 0.3), (10**9, 0.3)]
)
def test_step_up_follows_the_published_example(step: int, expected: float) -> None:
    # 0.1, doubled every 5,000 steps, never above 0.3 (0.1, 0.2, then 0.4 clamped)
    schedule = StepUp(start=0.1, gamma=2.0, every=5_000, maximum=0.3)
    assert schedule(step) == pytest.approx(expected, rel=1e-12)


def test_step_up_without_a_maximum_survives_overflow() -> None:
    assert StepUp(start=1.0, gamma=10.0, every=1)(10**6) == math.inf
    assert StepUp(start=1.0, gamma=10.0, every=1, maximum=2.0)(10**6) == 2.0


def test_step_up_from_zero_stays_there_however_far_the_power_overflows() -> None:
    schedule = StepUp(start=0.0, gamma=10.0, every=1, maximum=5.0)
    assert {schedule(step) for step in (0, 308, 309, 10**6)} == {0.0}
    assert StepUp(start=0.0, gamma=10.0, every=1, minimum=0.5)(400) == 0.5


def test_step_up_shrinks_to_its_minimum() -> None:
    schedule = StepUp(start=1.0, gamma=0.5, every=2, minimum=0.3)
    assert [schedule(step) for step in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.3, 0.3]


def test_add_up_adds_and_clamps() -> None:
    schedule = AddUp(start=0.25, gamma=0.5, every=3, maximum=1.0)
    assert [schedule(step) for step in range(0, 13, 3)] == [0.25, 0.75, 1.0, 1.0, 1.0]
    assert schedule(2) == 0.25


def test_linear_ramp_is_a_line_and_then_flat() -> None:
    schedule = LinearRamp(start=0.1, stop=1.1, num_steps=10)
    assert [schedule(step) for step in (0, 5, 10, 99)] == pytest.approx([0.1, 0.6, 1.1, 1.1], rel=1e-12)


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.integers(1, 1000), st.integers(0, 10**6))
def test_a_ramp_stays_between_its_ends(start: float, stop: float, num_steps: int, step: int) -> None:
    value = LinearRamp(start=start, stop=stop, num_steps=num_steps)(step)
    slack = 1e-9 * max(start, stop)
    assert min(start, stop) - slack <= value <= max(start, stop) + slack


@pytest.mark.usefixtures("without_type_checks")
def test_a_number_is_a_constant_and_a_schedule_itself() -> None:
    ramp = LinearRamp(start=0.0, stop=1.0, num_steps=2)
    assert as_schedule(ramp) is ramp
    assert as_schedule(2) == as_schedule(numpy.float32(2)) == Constant(2.0)
    assert Constant(0.5)(0) == Constant(0.5)(10**9) == 0.5


@pytest.mark.usefixtures("without_type_checks")
def test_what_is_neither_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="a schedule is a number or a function of the step, got str"):
        as_schedule("0.1")  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_values_must_be_finite_and_not_negative(value: float) -> None:
    with pytest.raises(ConfigurationError, match="value must be a finite number of zero or more"):
        as_schedule(value)
    with pytest.raises(ConfigurationError, match="start must be"):
        StepUp(start=value, gamma=1.0, every=1)
    with pytest.raises(ConfigurationError, match="stop must be"):
        LinearRamp(start=0.0, stop=value, num_steps=1)


@pytest.mark.parametrize("policy", [StepUp, AddUp])
def test_stepped_policies_refuse_what_cannot_be_stepped(policy: type[StepUp] | type[AddUp]) -> None:
    with pytest.raises(ConfigurationError, match="every must be at least 1"):
        policy(start=0.1, gamma=2.0, every=0)
    with pytest.raises(ConfigurationError, match=r"minimum 2\.0 is above maximum 1\.0"):
        policy(start=0.1, gamma=2.0, every=1, minimum=2.0, maximum=1.0)
    with pytest.raises(ConfigurationError, match="gamma must be zero or more"):
        policy(start=0.1, gamma=-1.0, every=1)


def test_a_ramp_needs_a_step() -> None:
    with pytest.raises(ConfigurationError, match="num_steps must be at least 1"):
        LinearRamp(start=0.0, stop=1.0, num_steps=0)
