"""Surprises against the survival functions they estimate, and what they come to together."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from detectors import CalibrationError
from detectors.fusion import LEAST_SCORES, Fusion, Surprise


def drawn(count: int, seed: int = 0) -> Tensor:
    return torch.empty(count).exponential_(generator=torch.Generator().manual_seed(seed))


def one_class(scores: Tensor) -> Surprise:
    return Surprise.fit(scores, torch.zeros(len(scores), dtype=torch.long), 1)


def of(surprise: Surprise, scores: Tensor, class_index: int = 0) -> Tensor:
    return surprise(scores, torch.full((len(scores),), class_index))


def test_the_surprise_of_exponential_scores_is_the_score_itself() -> None:
    """-log P(S >= s) = s for a rate of one, inside the sample and far beyond it."""
    surprise = one_class(drawn(100_000))
    asked = torch.tensor([0.2, 0.7, 1.5, 3.0, 6.0])
    assert torch.allclose(of(surprise, asked), asked, rtol=0.05, atol=0.03)
    assert float(of(surprise, torch.tensor([30.0]))) == pytest.approx(30, rel=0.35)


def test_surprises_of_clean_scores_follow_the_exponential_of_mean_one() -> None:
    """Then twice their sum over m independent detectors is chi-squared with 2 m degrees: Fisher's method."""
    generator = torch.Generator().manual_seed(1)
    surprise = one_class(torch.randn(50_000, generator=generator))
    surprises = of(surprise, torch.randn(50_000, generator=generator))
    assert float(surprises.mean()) == pytest.approx(1, abs=0.2)
    for halvings in (1, 2, 3, 5, 7):
        share = float((surprises >= halvings * math.log(2)).double().mean())
        assert share == pytest.approx(0.5**halvings, rel=0.15)


def test_every_class_has_its_own() -> None:
    scores = torch.cat([drawn(400), 100 + drawn(400, seed=1)])
    surprise = Surprise.fit(scores, torch.arange(2).repeat_interleave(400), 2)
    assert float(of(surprise, torch.tensor([100.5]), 0)) > 50
    assert float(of(surprise, torch.tensor([100.5]), 1)) < 2


@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=60),
    st.lists(st.floats(-2e6, 2e6, width=32), min_size=2, max_size=20),
)
def test_it_rises_with_the_score_and_is_bounded_below(clean: list[float], asked: list[float]) -> None:
    found = of(one_class(torch.tensor(clean)), torch.tensor(sorted(asked)))
    assert bool(found.isfinite().all())
    assert bool((found.diff() >= -1e-4 * (1 + found[1:].abs())).all())
    assert bool((found >= -math.log(2) - 1e-5).all())


def test_few_scores_of_one_class_among_many_of_another_still_order() -> None:
    scores = torch.cat([drawn(4_000), drawn(LEAST_SCORES)])
    classes = torch.cat([torch.zeros(4_000), torch.ones(LEAST_SCORES)]).long()
    found = of(Surprise.fit(scores, classes, 2), torch.tensor([0.5, 2.0, 8.0, 32.0]), 1)
    assert bool((found.diff() > 0.5).all())


def test_its_gradient_is_there_everywhere_and_positive() -> None:
    surprise = one_class(drawn(500))
    asked = torch.tensor([-1.0, 0.0, 0.3, 2.0, 7.0, 1e4], requires_grad=True)
    of(surprise, asked).sum().backward()
    assert asked.grad is not None
    assert bool((asked.grad > 0).all())


def test_scores_that_all_tie_neither_divide_by_zero_nor_hide_what_differs() -> None:
    surprise = one_class(torch.full((50,), 3.0))
    found = of(surprise, torch.tensor([3.0, 3.5]))
    assert bool(found.isfinite().all())
    assert float(found[1] - found[0]) > 10


def test_a_class_without_a_clean_score_is_refused() -> None:
    with pytest.raises(CalibrationError, match="too few calibration images"):
        Surprise.fit(drawn(400), torch.zeros(400, dtype=torch.long), 2)


@pytest.mark.parametrize("count", [0, 1, LEAST_SCORES - 1])
def test_a_class_with_few_clean_scores_takes_those_of_all_and_is_surprised_as_they_are(count: int) -> None:
    scores = {"a": torch.cat([drawn(400), torch.full((count,), 0.5)]), "b": drawn(400 + count, seed=1)}
    classes = torch.cat([torch.zeros(400), torch.ones(count)]).long()
    fused = Fusion.fit(scores, classes, 2)
    everyone = Fusion.fit(scores, torch.zeros_like(classes), 1)
    asked = {name: torch.tensor([0.1, 0.7, 3.0, 20.0]) for name in scores}
    found = fused(asked, torch.ones(4, dtype=torch.long))
    assert torch.allclose(found, everyone(asked, torch.zeros(4, dtype=torch.long)))
    assert float(found[-1]) > 10


def test_a_class_with_enough_clean_scores_borrows_none() -> None:
    scores = {"a": torch.cat([drawn(400), 100 + drawn(LEAST_SCORES)])}
    classes = torch.cat([torch.zeros(400), torch.ones(LEAST_SCORES)]).long()
    fused = Fusion.fit(scores, classes, 2)
    assert float(fused({"a": torch.tensor([100.5])}, torch.tensor([1]))) < 3
    assert float(fused({"a": torch.tensor([100.5])}, torch.tensor([0]))) > 50


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_clean_scores_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(CalibrationError, match="not finite"):
        one_class(torch.tensor([0.0, bad]))


def test_a_score_that_is_not_a_number_is_endlessly_surprising() -> None:
    assert float(of(one_class(drawn(100)), torch.tensor([math.nan]))) == math.inf


def test_the_fused_score_is_of_the_harmonic_mean_and_ignores_detectors_beside_it() -> None:
    clean = {"a": drawn(600), "b": 3 * drawn(600, seed=1)}
    classes = torch.arange(2).repeat(300)
    first, second = (Surprise.fit(of, classes, 2) for of in clean.values())
    fused = Fusion.fit(clean, classes, 2)
    assert fused.names == ("a", "b")
    scores = {"b": torch.tensor([2.0, 0.2]), "a": torch.tensor([0.1, 5.0]), "beside": torch.tensor([9.0, 9.0])}
    class_index = torch.tensor([1, 0])
    p_values = (torch.exp(-first(scores["a"], class_index)), torch.exp(-second(scores["b"], class_index)))
    expected = -torch.log(1 / (1 / p_values[0] + 1 / p_values[1]))
    assert torch.allclose(fused(scores, class_index), expected)


def test_one_loud_alarm_is_hardly_quieter_for_the_calm_of_the_others_and_two_are_louder() -> None:
    clean = {name: drawn(2_000, seed=seed) for seed, name in enumerate("abcd")}
    fused = Fusion.fit(clean, torch.zeros(2_000, dtype=torch.long), 1)
    scores = {name: torch.tensor([0.5, 0.0, 0.5]) for name in "abcd"}
    scores["a"] = torch.tensor([6.0, 6.0, 6.0])
    scores["b"][2] = 6.0
    among_middling, among_calm, two = fused(scores, torch.zeros(3, dtype=torch.long))
    assert among_calm <= among_middling < among_calm + 0.1
    assert two > among_middling + 0.5
