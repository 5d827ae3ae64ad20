"""What is told of a model's images, against counting them; drifts in plain words."""

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from detectors import SHIPPED_BUNDLE, Screener
from detectors.manifest import Manifest, load_manifest
from service.monitoring.baseline import load_baseline
from service.monitoring.intervals import wilson
from service.monitoring.model_watch import Findings, ModelWatch
from service.monitoring.snapshot import QUANTILE_LEVELS
from service.monitoring.tally import NUM_STEPS
from service.monitoring.words import duration
from tests.service.monitoring.simulated import RATE, Clock, Source, baseline_of

SIZES = [700, 700, 700]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def manifest() -> Manifest:
    return replace(load_manifest(SHIPPED_BUNDLE), false_alarm_rate=RATE)


@pytest.fixture
def watch(manifest: Manifest, clock: Clock) -> ModelWatch:
    return ModelWatch(manifest, baseline_of(SIZES), clock=clock)


def tell(watch: ModelWatch) -> Findings:
    return watch.tell(watch.gather(), datetime.now(UTC))


@given(st.integers(0, 300), st.integers(0, 300))
def test_the_interval_is_wilson_s(hits, others):
    count = hits + others
    expected = binomtest(hits, count).proportion_ci(method="wilson") if count else (0.0, 1.0)
    assert wilson(hits, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_what_is_told_is_what_was_judged(watch, clock):
    source = Source.calibrated(SIZES)
    batches = [source.batch(source.generator.integers(0, 3, size=64)) for _ in range(100)]
    for batch in batches:
        watch.batch_judged(batch)
    found = tell(watch)
    classes = np.concatenate([batch.class_index for batch in batches])
    flagged = np.concatenate([batch.flagged for batch in batches])
    p_values = np.concatenate([batch.p_value for batch in batches]).astype(np.float64)
    for share in (found.flagged.five_minutes, found.flagged.hour, found.flagged.since_start):
        assert (share.num_images, share.num_flagged) == (6400, flagged.sum())
    assert {told.class_index: told.flagged.hour.num_images for told in found.classes} == Counter(classes.tolist())
    bins = np.ceil(np.round(p_values * 701) * 20 / 701 - 1e-9).astype(int) - 1
    assert found.p_values.counts == np.bincount(bins, minlength=20).tolist()
    assert sum(found.p_values.expected) == pytest.approx(6400)
    log_likelihood = np.concatenate([batch.log_likelihood for batch in batches])
    for told in found.classes:
        exact = np.quantile(log_likelihood[classes == told.class_index], QUANTILE_LEVELS)
        assert told.log_likelihood.live == pytest.approx(exact, abs=1.35 / 8)
        assert abs(told.log_likelihood.median_shift) < 0.25
    assert found.drift.alarms == []
    assert found.drift.num_classes_tested == 3


def test_windows_forget_and_totals_do_not(watch, clock):
    source = Source.calibrated(SIZES)
    classes = np.zeros(10, np.int64)
    for seconds in (0, 400, 59 * 60):
        watch.batch_judged(source.batch(classes))
        clock.seconds += seconds
    shares = tell(watch).flagged
    assert [of.num_images for of in (shares.five_minutes, shares.hour, shares.since_start)] == [0, 10, 30]
    clock.seconds += NUM_STEPS * 60
    found = tell(watch)
    assert found.flagged.hour.num_images == 0
    assert found.flagged.hour.share is None
    assert found.classes[0].log_likelihood.live is None


def run(watch: ModelWatch, clock: Clock, source: Source, minutes: int) -> Findings:
    """A hundred images of each class a minute; what is told after each, at last."""
    found = tell(watch)
    for _ in range(minutes):
        watch.batch_judged(source.batch(np.repeat(np.arange(len(SIZES)), 100)))
        clock.seconds += 60
        found = tell(watch)
    return found


def test_a_drift_of_one_class_is_told_in_plain_words_and_so_is_its_end(watch, clock):
    source = Source.calibrated(SIZES)
    assert run(watch, clock, source, 10).drift.alarms == []
    for _ in range(20):
        watch.batch_judged(source.batch(np.repeat([0, 1], 100)))
        watch.batch_judged(source.shifted(1.2).batch(np.full(100, 2)))
        clock.seconds += 60
        found = tell(watch)
    told = {(alarm.kind, alarm.label): alarm for alarm in found.drift.alarms}
    assert {("flagged", "2"), ("p_values", "2"), ("likelihood", "2")} <= set(told)
    assert {label for _, label in told} <= {"2", None}
    words = told["flagged", "2"].words
    assert words.startswith("class 2 is flagged at ")
    assert words.endswith(" % where 1 % is promised, for 20 minutes")
    assert told["flagged", "2"].duration_seconds == 20 * 60
    assert "the likelihood of class 2 has moved down by 1." in told["likelihood", "2"].words
    assert "p-values of class 2 are not uniform" in told["p_values", "2"].words
    assert found.drift.alarms == sorted(found.drift.alarms, key=lambda alarm: -alarm.evidence)
    assert all(alarm.evidence >= alarm.threshold for alarm in found.drift.alarms)
    assert run(watch, clock, source, 20).drift.alarms == []


def test_inputs_that_are_too_typical_are_a_drift_too(watch, clock):
    found = run(watch, clock, Source.calibrated(SIZES).shifted(-2), 5)
    words = {alarm.kind: alarm.words for alarm in found.drift.alarms if alarm.label is None}
    assert "lie above 0.5 where 50 % should" in words["p_values"]
    assert words["likelihood"].startswith("the likelihood of images has moved up by ")


def test_the_baseline_is_that_of_the_bundle(manifest: Manifest, shipped_screener: Screener):
    baseline = load_baseline(SHIPPED_BUNDLE, manifest)
    assert baseline.sizes.tolist() == list(manifest.calibration_sizes.values())
    table = shipped_screener.calibration
    for index in range(len(manifest.labels)):
        clean = -table.scores[index, : table.counts[index]].double().numpy()
        assert baseline.quantiles[index] == pytest.approx(np.quantile(clean, QUANTILE_LEVELS))
    flags = baseline.families[0].gaps[:, 0].tolist()
    expected = [np.floor(manifest.false_alarm_rate * (size + 1)) for size in baseline.sizes]
    assert flags == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (5, "less than a minute"),
        (60, "1 minute"),
        (1200, "20 minutes"),
        (3600, "1 hour"),
        (7500, "2 hours 5 minutes"),
    ],
)
def test_durations_are_told_as_people_do(seconds, words):
    assert duration(seconds) == words
