"""Statistics over seeds against SciPy and published tables."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from detectors.comparison.statistics import (
    critical_difference,
    friedman_p_value,
    holm,
    mean_interval,
    mean_ranks,
    paired_p_value,
)

VALUES = np.random.default_rng(0).normal(size=(6, 4))


def test_the_interval_is_scipys() -> None:
    mean, low, high = mean_interval(VALUES[:, 0])
    expected = stats.ttest_1samp(VALUES[:, 0], 0.0).confidence_interval(0.95)
    assert (mean, low, high) == pytest.approx((VALUES[:, 0].mean(), expected.low, expected.high))


def test_one_seed_has_no_interval() -> None:
    assert mean_interval(np.array([0.7])) == (0.7, 0.7, 0.7)


def test_the_paired_test_is_scipys() -> None:
    assert paired_p_value(VALUES[:, 0], VALUES[:, 1]) == pytest.approx(
        stats.ttest_rel(VALUES[:, 0], VALUES[:, 1]).pvalue
    )


def test_nothing_differs_where_nothing_does() -> None:
    same = np.array([0.5, 0.6, 0.7])
    assert paired_p_value(same, same) == 1.0
    assert paired_p_value(same[:1], same[:1]) is None


def test_holm_by_hand() -> None:
    # sorted 0.01, 0.02, 0.04: times 3, 2, 1, and never falling
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_only_raises_and_keeps_the_order(p_values: list[float]) -> None:
    adjusted = holm(p_values)
    assert all(one >= other for one, other in zip(adjusted, p_values, strict=True))
    assert max(adjusted) <= 1
    order = np.argsort(p_values, kind="stable")
    assert all(np.diff(np.array(adjusted)[order]) >= 0)


def test_ranks_by_hand() -> None:
    # highest first; ties share: rows (3, 1, 2) and (5, 5, 1)
    assert mean_ranks(np.array([[3.0, 1.0, 2.0], [5.0, 5.0, 1.0]])) == pytest.approx([1.25, 2.25, 2.5])


def test_friedman_is_scipys() -> None:
    assert friedman_p_value(VALUES) == pytest.approx(stats.friedmanchisquare(*VALUES.T).pvalue)
    assert friedman_p_value(VALUES[:1]) is None
    assert friedman_p_value(VALUES[:, :2]) is None


def test_the_critical_difference_is_demsars() -> None:
    # Demsar 2006, table 5: q = 2.728 for five classifiers, and his section 3.2.2: 14 data sets, four: CD = 1.25
    assert critical_difference(1, 5) == pytest.approx(2.728 * (5 * 6 / 6) ** 0.5, rel=1e-3)
    assert critical_difference(14, 4) == pytest.approx(1.25, abs=0.005)
