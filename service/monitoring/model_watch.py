"""One loaded version under watch: its counts, and what they say."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detectors.manifest import Manifest
from service.judgements import Judgements
from service.monitoring import tally as columns
from service.monitoring.baseline import Baseline, load_baseline
from service.monitoring.drift import DAY_SECONDS, FALSE_ALARMS_A_DAY, DriftWatch, Standing, threshold
from service.monitoring.evidence import Family
from service.monitoring.intervals import flagged_share
from service.monitoring.likelihoods import live_quantiles, median_shifts
from service.monitoring.snapshot import (
    MOST_CLASSES_TOLD,
    QUANTILE_LEVELS,
    ClassMonitor,
    Drift,
    DriftAlarm,
    FlaggedShares,
    LogLikelihood,
    PValues,
)
from service.monitoring.tally import Counted, Tally
from service.monitoring.words import flagged_words, likelihood_words, p_value_words

STEP_SECONDS = 60.0
RECENT_SECONDS = 300.0

Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What is told of a model's images."""

    flagged: FlaggedShares
    p_values: PValues
    classes: list[ClassMonitor]
    drift: Drift


class ModelWatch:
    """Counts on the event loop (`batch_judged`, `gather`); `tell` takes what was gathered and may run elsewhere."""

    def __init__(
        self,
        manifest: Manifest,
        baseline: Baseline,
        *,
        clock: Callable[[], float] = time.monotonic,
        step_seconds: float = STEP_SECONDS,
    ):
        self.manifest, self.loaded = manifest, datetime.now(UTC)
        self._baseline, self._clock, self._step_seconds = baseline, clock, step_seconds
        self._tally = Tally(baseline, clock=clock, step_seconds=step_seconds)
        families, num_rows = baseline.families, len(baseline.sizes) + 1
        num_windows = len(families) * num_rows * DAY_SECONDS / step_seconds
        self._threshold = threshold(num_windows, false_alarms=FALSE_ALARMS_A_DAY)
        self._watches = {family: DriftWatch(family, threshold=self._threshold) for family in families}

    @classmethod
    def of(cls, bundle: Path, manifest: Manifest) -> "ModelWatch":
        """Raises BundleError."""
        return cls(manifest, load_baseline(bundle, manifest))

    def batch_judged(self, judgements: Judgements) -> None:
        self._tally.batch_judged(judgements)

    def gather(self) -> Counted:
        return self._tally.counted()

    def tell(self, counted: Counted, now: datetime) -> Findings:
        """now: the time by the calendar as this is called."""
        clock = self._clock()
        hour = counted.since(-inf)
        recent = counted.since(clock - RECENT_SECONDS)
        standing = [alarm for family in self._watches for alarm in self._look(family, counted)]
        windows = (recent[:, columns.TOTALS], hour[:, columns.TOTALS], counted.class_totals)
        return Findings(
            flagged=_flagged_shares(*(window.sum(0) for window in windows)),
            p_values=self._p_values(hour[:-1]),
            classes=self._classes(windows, hour),
            drift=Drift(
                alarms=[
                    self._alarm(alarm, counted, clock, now)
                    for alarm in sorted(standing, key=lambda alarm: -alarm.evidence)
                ],
                false_alarms_a_day=FALSE_ALARMS_A_DAY,
                num_classes_tested=len(self._baseline.sizes),
            ),
        )

    def _look(self, family: Family, counted: Counted) -> list[Standing]:
        if family.kind == "flagged":
            bins = counted.by_step(columns.TOTALS)
            bins = np.stack([bins[:, :, 1], bins[:, :, 0] - bins[:, :, 1]], 2)
        else:
            bins = counted.by_step(columns.VERDICT if family.kind == "p_values" else columns.LIKELIHOOD)
        return self._watches[family].look(counted.starts, bins)

    def _classes(self, windows: tuple[Ints, Ints, Ints], hour: Ints) -> list[ClassMonitor]:
        num_images = windows[1][:-1, 0]
        told = np.sort(np.argsort(-num_images, kind="stable")[:MOST_CLASSES_TOLD])
        quantiles = live_quantiles(hour[told][:, columns.RULER], self._baseline, told)
        return [
            ClassMonitor(
                class_index=index,
                label=self._baseline.labels[index],
                num_calibration_images=int(self._baseline.sizes[index]),
                flagged=_flagged_shares(*(window[index] for window in windows)),
                p_values=self._p_values(hour[index : index + 1], index),
                log_likelihood=self._log_likelihood(index, live if num_images[index] else None),
            )
            for index, live in zip(told.tolist(), quantiles, strict=True)
        ]

    def _log_likelihood(self, index: int, live: NDArray[np.float64] | None) -> LogLikelihood:
        known = self._baseline.quantiles
        calibration = None if known is None or np.isnan(known[index, 0]) else known[index].tolist()
        middle = len(QUANTILE_LEVELS) // 2
        shift = None if live is None or calibration is None else float(live[middle] - calibration[middle])
        return LogLikelihood(
            levels=list(QUANTILE_LEVELS),
            live=None if live is None else live.tolist(),
            calibration=calibration,
            median_shift=shift,
        )

    def _p_values(self, counts: Ints, first: int = 0) -> PValues:
        """Of the classes from the first on (k, columns), together."""
        found = counts[:, columns.VERDICT]
        expected = found.sum(1) @ self._baseline.expected_shares[first : first + len(found)]
        return PValues(counts=found.sum(0).tolist(), expected=expected.tolist())

    def _alarm(self, standing: Standing, counted: Counted, clock: float, now: datetime) -> DriftAlarm:
        everything = standing.row == len(self._baseline.sizes)
        label = None if everything else self._baseline.labels[standing.row]
        rows = slice(0, -1) if everything else slice(standing.row, standing.row + 1)
        seconds = max(0.0, clock - standing.since)
        return DriftAlarm(
            kind=standing.kind,
            class_index=None if everything else standing.row,
            label=label,
            since=now - timedelta(seconds=seconds),
            duration_seconds=seconds,
            evidence=standing.evidence,
            threshold=self._threshold,
            words=self._words(standing, label, counted.since(standing.since)[rows], rows, seconds),
        )

    def _words(self, standing: Standing, label: str | None, counts: Ints, rows: slice, seconds: float) -> str:
        """counts (k, columns) since then, of the rows that the alarm is about."""
        if standing.kind == "flagged":
            share = counts[:, columns.FLAGGED].sum() / max(1, counts[:, columns.IMAGES].sum())
            return flagged_words(label, share, self.manifest.false_alarm_rate, seconds)
        if standing.kind == "p_values":
            told = self._p_values(counts, rows.start)
            return p_value_words(label, np.array(told.counts, float), np.array(told.expected), seconds)
        shifts = median_shifts(counts[:, columns.RULER], self._baseline, rows)
        return likelihood_words(label, shifts, seconds)


def _flagged_shares(recent: Ints, hour: Ints, ever: Ints) -> FlaggedShares:
    """Each (2,): images, flagged."""
    told = [flagged_share(int(flagged), int(images)) for images, flagged in (recent, hour, ever)]
    return FlaggedShares(five_minutes=told[0], hour=told[1], since_start=told[2])
