import math
from bisect import bisect_left

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detectors.calibration import ConformalCalibration, check_rate
from model.errors import CalibrationError

# Few values, so that ties are the rule.
CLEAN = st.lists(
    st.tuples(st.sampled_from([-3.5, -1.0, 0.0, 0.25, 0.5, 2.0, 1e30]), st.integers(0, 2)), min_size=1, max_size=40
)
ASKED = st.one_of(
    st.sampled_from([-3.5, -1.0, 0.0, 0.25, 0.5, 2.0, 1e30, math.inf, -math.inf, math.nan]),
    st.floats(width=32),
)


def fit(scores: list[float], classes: list[int], num_classes: int = 3) -> ConformalCalibration:
    return ConformalCalibration.fit(torch.tensor(scores), torch.tensor(classes), num_classes)


def p_value(calibration: ConformalCalibration, score: float, index: int = 0) -> float:
    return float(calibration(torch.tensor([score]), torch.tensor([index])))


@given(CLEAN, ASKED, st.integers(0, 2))
def test_p_values_are_the_formula_s(clean: list[tuple[float, int]], asked: float, index: int) -> None:
    """(1 + #{clean scores of the class >= s}) / (n + 1), counted one by one; NaN counts as above all."""
    calibration = fit([score for score, _ in clean], [label for _, label in clean])
    members = [torch.tensor(score).item() for score, label in clean if label == index]
    at_least = sum(score >= asked for score in members)
    assert p_value(calibration, asked, index) == pytest.approx((1 + at_least) / (len(members) + 1))


@given(CLEAN, st.lists(st.tuples(ASKED, st.integers(0, 2)), min_size=1, max_size=10))
def test_p_values_lie_in_their_range_and_do_not_depend_on_the_batch(
    clean: list[tuple[float, int]], asked: list[tuple[float, int]]
) -> None:
    calibration = fit([score for score, _ in clean], [label for _, label in clean])
    scores, classes = torch.tensor([score for score, _ in asked]), torch.tensor([label for _, label in asked])
    together = calibration(scores, classes)
    smallest = 1 / (torch.bincount(torch.tensor([label for _, label in clean]), minlength=3)[classes] + 1)
    assert bool((together > 0).all())
    assert bool((together <= 1).all())
    assert bool((together >= smallest).all())
    alone = [p_value(calibration, float(score), int(label)) for score, label in zip(scores, classes, strict=True)]
    assert together.tolist() == alone


@given(CLEAN, st.floats(-5, 5, width=32), st.floats(-5, 5, width=32))
def test_a_higher_score_never_has_a_higher_p_value(
    clean: list[tuple[float, int]], first: float, second: float
) -> None:
    calibration = fit([score for score, _ in clean], [label for _, label in clean])
    low, high = sorted((first, second))
    assert p_value(calibration, high) <= p_value(calibration, low)


def test_by_hand() -> None:
    calibration = fit([1.0, 2.0, 2.0, 3.0, 9.0, 8.0], [0, 0, 0, 0, 1, 1])
    assert [p_value(calibration, score) for score in (0.0, 1.0, 2.0, 2.5, 3.0, 3.5)] == pytest.approx(
        [1.0, 1.0, 0.8, 0.4, 0.4, 0.2]
    )
    assert p_value(calibration, 8.5, 1) == pytest.approx(2 / 3)
    assert p_value(calibration, 8.5, 2) == 1.0  # a class without clean scores says nothing


@pytest.mark.parametrize("score", [math.inf, math.nan, 1e38])
def test_what_is_beyond_every_clean_score_gets_the_smallest(score: float) -> None:
    assert p_value(fit([1.0, 2.0, 3.0], [0, 0, 0]), score) == 0.25


@pytest.mark.parametrize(("num_clean", "rate"), [(99, 0.01), (19, 0.05), (60, 0.05), (999, 0.01), (333, 0.03)])
def test_the_false_alarm_rate_is_exact(num_clean: int, rate: float) -> None:
    """Over redraws of calibration and new score together, P(p <= a) lies in (a - 1 / (n + 1), a]: Vovk et al."""
    generator = torch.Generator().manual_seed(num_clean)
    redraws = 2_000_000 // (num_clean + 1)
    draws = torch.randn(redraws, num_clean + 1, generator=generator)
    rows = draws[:, :-1].sort(1).values
    calibration = ConformalCalibration(rows, torch.full((redraws,), num_clean))  # a redraw a class
    alarms = calibration(draws[:, -1], torch.arange(redraws)) <= rate
    noise = 4 * math.sqrt(rate / redraws)
    exact = math.floor(rate * (num_clean + 1) + 1e-9) / (num_clean + 1)
    assert rate - 1 / (num_clean + 1) < exact <= rate + 1e-12
    assert float(alarms.double().mean()) == pytest.approx(exact, abs=noise)


def test_the_rate_is_exact_over_all_ranks() -> None:
    """A new score is equally likely at every rank: of n + 1 ranks exactly floor(a (n + 1)) are flagged."""
    calibration = fit([float(score) for score in range(19)], [0] * 19, 1)
    between = torch.arange(20).float() - 0.5
    p_values = calibration(between, torch.zeros(20, dtype=torch.int64))
    for rate, flagged in ((0.05, 1), (0.1, 2), (0.049, 0), (0.5, 10)):
        assert int((p_values <= rate).sum()) == flagged


def test_each_class_is_calibrated_by_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.arange(3).repeat(2000)
    scores = torch.randn(6000, generator=generator) * (classes + 1) + 10 * classes
    calibration = ConformalCalibration.fit(scores[:3000], classes[:3000], 3)
    alarms = calibration(scores[3000:], classes[3000:]) <= 0.1
    for index in range(3):
        assert float(alarms[classes[3000:] == index].double().mean()) == pytest.approx(0.1, abs=0.04)


def test_too_few_images_name_class_count_and_need() -> None:
    calibration = fit([0.0] * 30, [0] * 20 + [1] * 10, 2)
    calibration.check_promise(0.1, ("cat", "dog"))
    with pytest.raises(CalibrationError, match=r"class 'dog' is predicted for 10 .* 0\.05 needs at least 19"):
        calibration.check_promise(0.05, ("cat", "dog"))


@pytest.mark.parametrize(("rate", "needed"), [(0.5, 1), (0.1, 9), (0.05, 19), (0.01, 99), (0.001, 999), (0.03, 33)])
def test_the_need_is_the_least_that_can_flag(rate: float, needed: int) -> None:
    enough, short = fit([0.0] * needed, [0] * needed, 1), fit([0.0] * max(1, needed - 1), [0] * max(1, needed - 1), 1)
    enough.check_promise(rate, ("only",))
    assert bool(enough(torch.tensor([1.0]), torch.tensor([0])) <= rate)
    if needed > 1:
        assert not bool(short(torch.tensor([1.0]), torch.tensor([0])) <= rate)
        with pytest.raises(CalibrationError, match=f"needs at least {needed}"):
            short.check_promise(rate, ("only",))


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 2.0, math.nan])
def test_a_rate_outside_its_range_is_refused(rate: float) -> None:
    with pytest.raises(CalibrationError, match=r"must lie in \(0, 1\)"):
        check_rate(rate)
    with pytest.raises(CalibrationError, match=r"must lie in \(0, 1\)"):
        fit([0.0] * 5, [0] * 5, 1).check_promise(rate, ("only",))


@pytest.mark.parametrize("score", [math.inf, -math.inf, math.nan])
def test_a_clean_score_that_is_not_finite_is_refused(score: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        fit([0.0, score], [0, 0], 1)


def test_the_table_is_sorted_and_padded() -> None:
    calibration = fit([3.0, 1.0, 2.0, 5.0], [0, 0, 0, 2])
    expected: Tensor = torch.tensor([[1.0, 2.0, 3.0], [math.inf] * 3, [5.0, math.inf, math.inf]])
    assert torch.equal(calibration.get_buffer("scores"), expected)
    assert calibration.get_buffer("counts").tolist() == [3, 0, 1]


def test_joined_tables_say_what_each_of_them_says() -> None:
    first, second = fit([3.0, 1.0, 2.0, 5.0], [0, 0, 0, 2]), fit([0.5, 0.7], [1, 1])
    joined = ConformalCalibration.join([first, second])
    asked, classes = torch.tensor([0.6, 1.5, 4.0, 9.0]), torch.tensor([1, 0, 2, 0])
    assert torch.equal(joined(asked, classes), first(asked, classes))
    assert torch.equal(joined(asked, classes + 3), second(asked, classes))


def test_p_values_agree_with_a_search_in_a_sorted_list() -> None:
    generator = torch.Generator().manual_seed(1)
    clean, asked = torch.randn(500, generator=generator), torch.randn(300, generator=generator)
    ordered = sorted(clean.tolist())
    expected = [(1 + 500 - bisect_left(ordered, score)) / 501 for score in asked.tolist()]
    found = ConformalCalibration.fit(clean, torch.zeros(500, dtype=torch.int64), 1)(
        asked, torch.zeros(300, dtype=torch.int64)
    )
    assert found.tolist() == pytest.approx(expected)
