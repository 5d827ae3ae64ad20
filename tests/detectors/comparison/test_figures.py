"""Figures of a network by hand and against SciPy."""

import numpy as np
import pytest
from scipy import stats

from detectors.comparison.figures import calibration_error, likelihood_misfit, quantile_threshold, scatter_ratio


def test_calibration_error_by_hand() -> None:
    # two at confidence 0.9 of which one is right: |0.5 - 0.9|; two at 0.6, both right: |1 - 0.6|; weights one half
    posterior = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]])
    assert calibration_error(posterior, np.array([0, 1, 0, 1])) == pytest.approx(0.4)


def test_a_sure_and_right_classifier_is_calibrated() -> None:
    assert calibration_error(np.eye(3), np.arange(3)) == 0
    assert calibration_error(np.eye(3), np.array([1, 2, 0])) == 1


def test_posteriors_that_are_true_are_calibrated() -> None:
    generator = np.random.default_rng(0)
    posterior = generator.dirichlet([1.0, 1.0, 1.0], 20_000)
    labels = (posterior.cumsum(1) < generator.random((20_000, 1))).sum(1)
    assert calibration_error(posterior, labels) < 0.02


def test_scatter_by_hand() -> None:
    # means 0 and 4 about 2; within 1 + 1 + 1 + 1 = 4, between 2 * 4 + 2 * 4 = 16
    features = np.array([[-1.0], [1.0], [3.0], [5.0]])
    assert scatter_ratio(features, np.array([0, 0, 1, 1])) == pytest.approx(0.25)
    assert scatter_ratio(np.zeros((4, 1)), np.array([0, 0, 1, 1])) is None


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_the_misfit_is_scipys_statistic(scale: float) -> None:
    squares = np.square(scale * np.random.default_rng(1).normal(size=(500, 4))).sum(1)
    expected = stats.kstest(squares, stats.chi2(4).cdf).statistic
    assert likelihood_misfit(squares, 4) == pytest.approx(expected)


def test_features_that_follow_the_law_fit() -> None:
    squares = np.square(np.random.default_rng(2).normal(size=(5000, 10))).sum(1)
    assert likelihood_misfit(squares, 10) < 0.03
    assert likelihood_misfit(squares * 100, 10) > 0.99


@pytest.mark.parametrize("count", [20, 100, 599])
def test_at_most_the_share_lies_above_the_threshold(count: int) -> None:
    scores = np.random.default_rng(3).normal(size=count)
    assert np.mean(scores > quantile_threshold(scores, 0.05)) <= 0.05
