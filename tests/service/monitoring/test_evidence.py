"""The urn's probabilities against counting, the martingale's mean, and the alarm's promised false-alarm rate."""

from itertools import product
from math import log

import numpy as np
import pytest
from numpy.typing import NDArray

from service.monitoring.baseline import _flagged_gaps, _gaps, bins_of
from service.monitoring.drift import FALSE_ALARMS_A_DAY, DriftWatch, threshold
from service.monitoring.evidence import Family, flagged_family, log_e_values, shape_family
from service.monitoring.snapshot import NUM_P_VALUE_BINS

FLAGGED_GAPS = np.array([[2.0, 7.0], [1.0, 4.0]])


def families() -> list[Family]:
    gaps = _gaps(np.array([30, 7]))
    return [flagged_family(FLAGGED_GAPS, 0.2), shape_family("p_values", gaps)]


def urn_probability(bins: tuple[int, ...], gaps: list[float]) -> float:
    """Step by step: what lies in a gap makes it likelier by one."""
    weights, probability = list(gaps), 1.0
    for drawn in bins:
        probability *= weights[drawn] / sum(weights)
        weights[drawn] += 1
    return probability


def test_the_likelihood_ratio_is_that_of_the_urn_drawn_step_by_step():
    family = families()[0]
    first, second = (0, 1, 1, 0, 0), (1, 1, 0)
    counts = np.array([[[3.0, 2.0], [1.0, 2.0]]])
    found = family.log_ratios(counts)
    for row, bins in enumerate((first, second)):
        null = urn_probability(bins, FLAGGED_GAPS[row].tolist())
        for alternative, chances in enumerate(np.exp(family.alternatives[:, row]).tolist()):
            expected = log(np.prod([chances[drawn] for drawn in bins]) / null)
            assert found[0, row, alternative].item() == pytest.approx(expected)
    np.testing.assert_allclose(found[:, 2], found[:, 0] + found[:, 1])


def test_the_e_value_has_mean_one_over_all_sequences_of_the_urn():
    family = families()[0]
    mean = 0.0
    for bins in product((0, 1), repeat=6):
        flagged = float(bins.count(0))
        counts = np.array([[[flagged, 6 - flagged], [0.0, 0.0]]])
        e_value = np.exp(log_e_values(family.log_ratios(counts))[0, 0])
        mean += urn_probability(bins, FLAGGED_GAPS[0].tolist()) * e_value
    assert mean == pytest.approx(1)


@pytest.mark.parametrize("family", families(), ids=lambda family: family.kind)
def test_every_drift_is_a_distribution_over_the_bins_that_can_be(family):
    chances = np.where(family.gaps > 0, np.exp(family.alternatives), 0).sum(2)
    np.testing.assert_allclose(chances, 1)
    nothing = np.zeros((1, *family.gaps.shape))
    assert np.abs(log_e_values(family.log_ratios(nothing))).max() < 1e-12


@pytest.mark.parametrize("size", [0, 1, 7, 19, 20, 699, 1012])
def test_bins_are_found_exactly_from_rounded_p_values(size):
    ranks = np.arange(1, size + 2)
    p_values = ranks.astype(np.float32) / np.float32(size + 1)
    found = bins_of(p_values, np.full(size + 1, size))
    exact = [-(-NUM_P_VALUE_BINS * rank // (size + 1)) - 1 for rank in ranks.tolist()]
    assert found.tolist() == exact
    gaps = _gaps(np.array([size]))[0]
    assert gaps.tolist() == np.bincount(exact, minlength=NUM_P_VALUE_BINS).tolist()
    assert gaps.sum() == size + 1


def test_as_many_gaps_are_flagged_as_the_verdict_flags():
    assert _flagged_gaps(np.array([99, 100, 199, 250, 38]), 0.01)[:, 0].tolist() == [1, 1, 2, 2, 0]
    assert _flagged_gaps(np.array([19, 38]), 0.05).tolist() == [[1, 19], [1, 38]]


# A day in small: 20 windows begin, 3 classes and all together, one question.
NUM_STEPS, SIZES, IMAGES_A_STEP, ALLOWED = 20, [60, 100, 150], 30, 0.2
LEVEL = threshold(NUM_STEPS * (len(SIZES) + 1), false_alarms=ALLOWED)


def ever_alarms(family: Family, generator: np.random.Generator, *, rank_gaps: NDArray[np.float64]) -> bool:
    """Whether clean traffic, with a calibration set drawn anew, ever raises an alarm when looked at each step."""
    watch, steps = DriftWatch(family, threshold=LEVEL), []
    calibrations = [np.sort(generator.random(size)) for size in SIZES]
    width = rank_gaps.shape[1]
    upper = rank_gaps.cumsum(1)
    for step in range(NUM_STEPS):
        counts = np.zeros((len(SIZES), width))
        for row, clean in enumerate(calibrations):
            scores = generator.random(IMAGES_A_STEP)
            ranks = 1 + len(clean) - np.searchsorted(clean, scores)
            counts[row] = np.bincount(np.searchsorted(upper[row], ranks), minlength=width)
        steps.append(counts)
        if watch.look(np.arange(step + 1.0), np.stack(steps)):
            return True
    return False


@pytest.mark.parametrize("kind", ["flagged", "p_values"])
def test_clean_traffic_has_no_more_false_alarms_than_promised(kind):
    sizes = np.array(SIZES)
    gaps = _flagged_gaps(sizes, 0.05) if kind == "flagged" else _gaps(sizes)
    family = flagged_family(gaps, 0.05) if kind == "flagged" else shape_family(kind, gaps)
    generator = np.random.default_rng(1)
    num_alarms = sum(ever_alarms(family, generator, rank_gaps=gaps) for _ in range(100))
    assert num_alarms <= 100 * ALLOWED


def test_a_test_that_takes_the_calibration_for_the_truth_would_cry_wolf():
    """The same alarm with the urn made so large that it learns nothing: p-values taken as uniform."""
    gaps = _gaps(np.array(SIZES))
    uniform = Family(kind="p_values", gaps=gaps * 1e6, alternatives=shape_family("p_values", gaps).alternatives)
    generator = np.random.default_rng(1)
    num_alarms = sum(ever_alarms(uniform, generator, rank_gaps=gaps) for _ in range(40))
    assert num_alarms > 40 * ALLOWED


def looked_at(watch: DriftWatch, flagged: list[tuple[int, int]]) -> list[int]:
    """How many alarms stand after each step; (flagged, not flagged) of the one class in it."""
    counts = np.array(flagged, dtype=np.float64)[:, None]
    return [len(watch.look(np.arange(step + 1.0), counts[: step + 1])) for step in range(len(flagged))]


def test_an_alarm_says_when_the_traffic_changed_and_ends_with_it():
    watch = DriftWatch(flagged_family(np.array([[7.0, 693.0]]), 0.01), threshold=15.0)
    clean, attacked = (2, 198), (12, 188)
    steps = [clean] * 6 + [attacked] * 12 + [clean] * 12
    standing = looked_at(watch, steps)
    assert standing[:6] == [0] * 6
    assert standing[17] == 2  # the class, and all together
    assert standing[-1] == 0
    again = DriftWatch(flagged_family(np.array([[7.0, 693.0]]), 0.01), threshold=15.0)
    looked_at(again, steps[:17])
    (of_class, _) = again.look(np.arange(18.0), np.array(steps[:18], dtype=np.float64)[:, None])
    assert of_class.since == 6


def test_a_slightly_raised_share_is_no_alarm_whatever_the_traffic():
    watch = DriftWatch(flagged_family(np.array([[7.0, 693.0]]), 0.01), threshold=15.0)
    assert looked_at(watch, [(13, 987)] * 60)[-1] == 0


def test_without_images_no_alarm_stands():
    watch = DriftWatch(flagged_family(np.array([[7.0, 693.0]]), 0.01), threshold=15.0)
    assert watch.look(np.array([0.0]), np.array([[[50.0, 0.0]]]))
    assert watch.look(np.array([]), np.zeros((0, 1, 2))) == []


# Three questions, ten classes and all together, a day's minutes.
A_DAY_S_LEVEL = threshold(3 * 11 * 1440, false_alarms=FALSE_ALARMS_A_DAY)


@pytest.mark.parametrize(
    ("num_clean", "num_images", "share", "alarm"),
    [
        (700, 4, 1.0, False),
        (700, 5, 1.0, True),
        (700, 800, 0.06, False),
        (700, 1200, 0.06, True),
        (700, 100_000, 0.03, False),
        (7000, 1000, 0.03, False),
        (7000, 2500, 0.03, True),
    ],
)
def test_an_alarm_takes_as_many_images_as_the_readme_says(num_clean, num_images, share, alarm):
    gaps = np.array([[num_clean / 100, num_clean * 0.99]])
    num_flagged = num_images * share
    counts = np.array([[[num_flagged, num_images - num_flagged]]])
    evidence = log_e_values(flagged_family(gaps, 0.01).log_ratios(counts))[0, 0].item()
    assert (evidence >= A_DAY_S_LEVEL) == alarm
