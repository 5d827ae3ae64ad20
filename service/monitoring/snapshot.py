"""What the monitor tells: one frozen picture of the last hour, as GET /v1/monitor and its stream give it.

Charts are columns, a number a bucket, since rows would say each name a thousand times. Where there was nothing to
measure, there is null and not zero. Times are UTC, durations seconds, likelihoods nats, shares in [0, 1].
"""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=0)]
Ratio = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]
Level = Literal["no traffic", "normal", "warning", "alarm"]
DriftKind = Literal["flagged", "p_values", "likelihood"]

NUM_P_VALUE_BINS = 20
QUANTILE_LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
MOST_CLASSES_TOLD = 100


class Told(BaseModel):
    """Base of all that is told: never changed once it is made."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FlaggedShare(Told):
    num_images: Count
    num_flagged: Count
    share: Ratio | None = Field(description="num_flagged / num_images; null without images.")
    low: Ratio = Field(description="Lower end of the share's 95 % interval (Wilson).")
    high: Ratio = Field(description="Upper end of it.")


class FlaggedShares(Told):
    """Over windows that end now."""

    five_minutes: FlaggedShare
    hour: FlaggedShare
    since_start: FlaggedShare = Field(description="Since this version was loaded here.")


class PValues(Told):
    """Histogram of the verdict's p-values over the last hour: equal bins of (0, 1], the first the most suspicious."""

    counts: list[Count] = Field(min_length=NUM_P_VALUE_BINS, max_length=NUM_P_VALUE_BINS)
    expected: list[float] = Field(
        description="Counts of clean traffic, all but equal: p-values are ranks among finitely many clean scores.",
        min_length=NUM_P_VALUE_BINS,
        max_length=NUM_P_VALUE_BINS,
    )


class LogLikelihood(Told):
    """Log-likelihoods over the last hour beside those of the calibration images, in nats."""

    levels: list[Ratio] = Field(description="Of the quantiles, ascending.")
    live: list[float] | None = Field(description="Quantiles of live images, from a histogram; null without images.")
    calibration: list[float] | None = Field(
        description="Quantiles of calibration images; null where the bundle has no likelihood detector."
    )
    median_shift: float | None = Field(description="Live median - calibration median; negative = less likely.")


class ClassMonitor(Told):
    """Images that were predicted to be of one class."""

    class_index: Count
    label: str
    num_calibration_images: Count
    flagged: FlaggedShares
    p_values: PValues
    log_likelihood: LogLikelihood


class DriftAlarm(Told):
    """Traffic that is unlike the calibration images, beyond what chance does."""

    kind: DriftKind
    class_index: Count | None = Field(description="The predicted class; null = over all classes.")
    label: str | None
    since: datetime = Field(description="Where the traffic most likely changed.")
    duration_seconds: Seconds
    evidence: float = Field(description="Natural logarithm of the e-value: how much likelier a drift is than none.")
    threshold: float = Field(description="The evidence, in the same unit, from which on it is an alarm.")
    words: str = Field(description="'class 7 is flagged at 6.0 % where 1 % is promised, for 20 minutes'.")


class Drift(Told):
    alarms: list[DriftAlarm] = Field(description="Those that stand now, the strongest evidence first.")
    false_alarms_a_day: float = Field(
        description="Promise: on traffic like the calibration's, a day has an alarm "
        "with at most this probability, over all kinds and classes."
    )
    num_classes_tested: Count


class Calibration(Told):
    created: datetime | None = Field(description="When it was calibrated; null where the bundle does not say.")
    age_seconds: Seconds | None
    num_images: Count


class ModelMonitor(Told):
    """One active version."""

    name: str
    version: str
    default: bool = Field(description="Whether it answers where no model is named.")
    loaded: datetime
    accuracy: Ratio | None = Field(description="Measured on test images when it was made.")
    workers_up: Count
    workers_wanted: Count
    queue_depth: Count
    promised_share: Ratio = Field(description="Share of clean images flagged at most: the false-alarm rate.")
    calibration: Calibration
    flagged: FlaggedShares
    p_values: PValues
    classes: list[ClassMonitor] = Field(
        max_length=MOST_CLASSES_TOLD, description="In the order of their index; of many, those with most images."
    )
    num_classes: Count
    drift: Drift


class Traffic(Told):
    """The last hour in buckets, oldest first; the last one is not over yet. Requests are those for predictions."""

    bucket_seconds: Seconds
    bucket_starts: list[datetime]
    requests: list[Count]
    client_errors: list[Count] = Field(description="4xx but 429.")
    server_errors: list[Count] = Field(description="5xx but 503.")
    refusals: list[Count] = Field(description="429 and 503: too much at once, or not ready.")
    images: list[Count]
    flagged: list[Count]
    latency_p50_seconds: list[float | None] = Field(description="Of requests not refused, from a histogram.")
    latency_p95_seconds: list[float | None]
    latency_p99_seconds: list[float | None]
    batch_size: list[float | None] = Field(description="Images in a batch, the mean.")
    queue_depth: list[Count] = Field(description="Most images seen waiting as a batch began.")


class Lately(Told):
    """Totals of the last five minutes."""

    requests_per_second: float
    images_per_second: float
    error_share: Ratio | None = Field(description="5xx but 503, of requests.")
    refused_share: Ratio | None
    latency_p50_seconds: float | None
    latency_p95_seconds: float | None
    latency_p99_seconds: float | None


class Snapshot(Told):
    time: datetime
    level: Level
    summary: str = Field(description="One sentence for whoever is on call.")
    service_version: str
    uptime_seconds: Seconds
    ready: bool
    device: str
    precision: str
    queue_capacity: Count
    lately: Lately
    traffic: Traffic
    models: list[ModelMonitor] = Field(description="The active version of each name, the default model's first.")
