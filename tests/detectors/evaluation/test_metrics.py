import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta, binom, norm
from sklearn.metrics import roc_auc_score

from detectors.calibration import ConformalCalibration
from detectors.evaluation import metrics

SCORES = st.lists(st.integers(-3, 3).map(float) | st.just(math.inf), min_size=1, max_size=12).map(np.array)


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_order_with_ties_counted_half(clean: np.ndarray, attacked: np.ndarray) -> None:
    pairs = [float(a > c) + 0.5 * float(a == c) for c in clean for a in attacked]
    assert metrics.auroc(clean, attacked) == pytest.approx(np.mean(pairs))


def test_auroc_of_scores_that_squash_to_one_under_a_sigmoid() -> None:
    assert metrics.auroc(np.linspace(30, 50, 20), np.linspace(60, 80, 20)) == 1.0


def test_what_is_not_a_number_is_the_most_suspicious() -> None:
    assert metrics.auroc(np.array([1.0, 2.0]), np.array([math.nan, 1.5])) == pytest.approx(0.75)


def test_nothing_to_compare_gives_none_and_never_a_number() -> None:
    empty, some = np.zeros(0), np.array([1.0])
    assert metrics.auroc(empty, some) is metrics.auroc(some, empty) is None
    assert metrics.auroc_interval(empty, some) is metrics.auroc_interval(some, empty) is None
    assert metrics.share(np.zeros(0, dtype=bool)) is None


def test_bootstrap_interval_is_that_of_plain_resampling_with_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    clean, attacked = generator.normal(size=70).round(1), generator.normal(0.8, 1.5, size=50).round(1)
    drawn = []
    for _ in range(4000):
        scores = np.concatenate([generator.choice(clean, 70), generator.choice(attacked, 50)])
        drawn.append(roc_auc_score(np.repeat([0, 1], [70, 50]), scores))
    found = metrics.bootstrap_interval(clean, attacked, level=0.95, resamples=4000, seed=0)
    assert found == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.008)


@pytest.mark.parametrize(
    ("truth", "num_clean", "num_attacked"),
    [(0.76, 60, 60), (0.9, 300, 40), (0.99, 300, 20), (0.995, 300, 100), (0.999, 300, 20), (0.999, 20, 300)],
)
def test_an_interval_covers_the_true_area_as_often_as_it_says(
    truth: float, num_clean: int, num_attacked: int
) -> None:
    """Near one the bootstrap alone covers it in 60 to 90 of 100 samples."""
    generator, apart = np.random.default_rng(2), norm.ppf(truth) * math.sqrt(2)
    hits = 0
    for seed in range(200):
        clean, attacked = generator.normal(size=num_clean), generator.normal(apart, size=num_attacked)
        interval = metrics.auroc_interval(clean, attacked, resamples=100, seed=seed)
        assert interval is not None
        hits += interval[0] <= truth <= interval[1]
    assert hits >= 0.93 * 200


@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 1))
def test_newcombes_interval_holds_the_area_and_turns_with_the_scores(m: int, n: int, area: float) -> None:
    low, high = metrics.newcombe_interval(area, m, n, level=0.95)
    assert 0 <= low <= area + 1e-9
    assert area - 1e-9 <= high <= 1
    turned = metrics.newcombe_interval(1 - area, n, m, level=0.95)
    assert turned == pytest.approx((1 - high, 1 - low), abs=1e-6)


def test_samples_that_do_not_overlap_leave_room_for_some_that_do() -> None:
    """At one, 1 - area = z^2 area (1 + N (...)) / (m n): of one attacked image next to nothing is known."""
    bounds = [metrics.auroc_interval(np.arange(1000.0), 1000.0 + np.arange(n)) for n in (1, 30, 1000)]
    lows = [low for low, _ in bounds]
    assert {high for _, high in bounds} == {1.0}
    assert lows == pytest.approx([0.4388, 0.9666, 0.9981], abs=1e-4)


def test_an_interval_is_the_same_for_the_same_seed() -> None:
    scores = np.random.default_rng(3).normal(size=(2, 30))
    assert metrics.auroc_interval(*scores, seed=5) == metrics.auroc_interval(*scores, seed=5)
    assert metrics.auroc_interval(*scores, seed=5) != metrics.auroc_interval(*scores, seed=6)


@pytest.mark.parametrize(("hits", "count"), [(0, 20), (20, 20), (3, 60), (50, 1000)])
def test_share_interval_is_clopper_and_pearsons(hits: int, count: int) -> None:
    low = beta.ppf(0.005, hits, count - hits + 1) if hits else 0.0
    high = beta.ppf(0.995, hits + 1, count - hits) if hits < count else 1.0
    assert metrics.share_interval(hits, count, level=0.99) == pytest.approx((low, high))


def test_intervals_of_no_image_are_everything() -> None:
    assert metrics.share_interval(0, 0, level=0.99) == metrics.wilson_interval(0, 0, level=0.95) == (0.0, 1.0)


@pytest.mark.parametrize(("rate", "count", "num_calibration"), [(0.05, 100, 400), (0.01, 1000, 500), (0.05, 7, 60)])
def test_promised_counts_are_those_of_split_conformal_p_values(rate: float, count: int, num_calibration: int) -> None:
    """Against calibrating and judging random scores, many times."""
    low, high = metrics.promised_counts(rate, count, num_calibration=num_calibration, level=0.99)
    random = np.random.default_rng(0)
    found = np.empty(4_000)
    for trial in range(len(found)):
        calibration = torch.tensor(random.normal(size=num_calibration))
        alarms = ConformalCalibration.fit(calibration, torch.zeros(num_calibration, dtype=torch.int64), 1)
        scores = torch.tensor(random.normal(size=count))
        found[trial] = metrics.flagged(alarms(scores, torch.zeros(count, dtype=torch.int64)).numpy(), rate).sum()
    assert ((found < low).mean(), (found > high).mean()) == pytest.approx((0.005, 0.005), abs=0.0055)
    inside = binom.interval(0.99, count, rate)
    assert low <= inside[0]  # the calibration images vary as well
    assert high >= inside[1]


def test_promised_counts_approach_the_binomial_with_more_calibration_images() -> None:
    assert metrics.promised_counts(0.05, 1000, num_calibration=10**9, level=0.99) == binom.interval(0.99, 1000, 0.05)
    assert metrics.promised_counts(0.01, 1000, num_calibration=98, level=0.99) == (0, 0)  # it never flags


def test_difference_interval_is_newcombes_published_one() -> None:
    """Newcombe 1998, table II, contrast (a), method 10: 56/70 - 48/80 = 0.2, 0.0524 to 0.3339."""
    first, second = (metrics.wilson_interval(hits, count, level=0.95) for hits, count in ((48, 80), (56, 70)))
    found = metrics.difference_interval(48 / 80, first, 56 / 70, second)
    assert found == pytest.approx((0.0524, 0.3339), abs=5e-5)


def test_difference_interval_turns_round_with_its_arguments() -> None:
    first, second = (0.5, 0.8), (0.6, 0.65)
    low, high = metrics.difference_interval(0.7, first, 0.62, second)
    assert metrics.difference_interval(0.62, second, 0.7, first) == pytest.approx((-high, -low))


def test_a_p_value_equal_to_the_rate_is_flagged_in_single_precision() -> None:
    p_values = np.array([1 / 20, 1 / 20 + 1e-6, 1 / 100], dtype=np.float32)
    assert metrics.flagged(p_values, 0.05).tolist() == [True, False, True]
    assert metrics.flagged(p_values, 0.01).tolist() == [False, False, True]


def test_weaker_is_the_exact_test_on_the_images_that_differ() -> None:
    stronger = np.array([True] * 9 + [False] * 1 + [True] * 50)
    other = np.array([False] * 9 + [True] * 1 + [True] * 50)
    assert metrics.weaker(stronger, other) == pytest.approx(binom.sf(8, 10, 0.5))
    assert metrics.weaker(other, stronger) > 0.99
    assert metrics.weaker(other, other) == 1.0


@given(SCORES, SCORES)
def test_the_area_under_the_roc_curve_is_the_auroc(clean: np.ndarray, attacked: np.ndarray) -> None:
    false_positive, true_positive = metrics.roc(clean, attacked)
    assert np.trapezoid(true_positive, false_positive) == pytest.approx(metrics.auroc(clean, attacked))
