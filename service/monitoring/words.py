"""What is wrong, in plain words."""

import numpy as np
from numpy.typing import NDArray

from service.monitoring.snapshot import NUM_P_VALUE_BINS, Lately, Level, ModelMonitor

Floats = NDArray[np.float64]
NOTEWORTHY_SHARE = 0.01
LEAST_NATS = 0.5


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def promise(share: float) -> str:
    return f"{100 * share:g} %"


def duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    told = [_plural(hours, "hour")] if hours else []
    return " ".join([*told, *([_plural(minutes, "minute")] if minutes else [])])


def flagged_words(label: str | None, share: float, promised: float, seconds: float) -> str:
    who = "images are" if label is None else f"class {label} is"
    return f"{who} flagged at {percent(share)} where {promise(promised)} is promised, for {duration(seconds)}"


def p_value_words(label: str | None, counts: Floats, expected: Floats, seconds: float) -> str:
    """Names that part of the histogram that stands out most; counts, expected (bins,)."""
    first, half, quarter = NUM_P_VALUE_BINS // 10, NUM_P_VALUE_BINS // 2, NUM_P_VALUE_BINS // 4
    parts = {
        "at or below 0.1": slice(0, first),
        "above 0.5": slice(half, None),
        "between 0.25 and 0.75": slice(quarter, -quarter),
    }
    found = {name: counts[part].sum() / counts.sum() for name, part in parts.items()}
    due = {name: expected[part].sum() / expected.sum() for name, part in parts.items()}
    name = max(parts, key=lambda name: abs(found[name] - due[name]) / np.sqrt(due[name] * (1 - due[name]) + 1e-9))
    whose = "p-values" if label is None else f"p-values of class {label}"
    return (
        f"{whose} are not uniform: {percent(found[name])} lie {name} where {promise(round(due[name], 2))} should, "
        f"for {duration(seconds)}"
    )


def likelihood_words(label: str | None, nats: float, seconds: float) -> str:
    whose = "the likelihood of images" if label is None else f"the likelihood of class {label}"
    if abs(nats) < LEAST_NATS:
        return f"{whose} is spread unlike the calibration's, for {duration(seconds)}"
    direction = "down" if nats < 0 else "up"
    return (
        f"{whose} has moved {direction} by {abs(nats):.{0 if abs(nats) >= 10 else 1}f} nats, for {duration(seconds)}"
    )


def summarise(models: list[ModelMonitor], lately: Lately, *, ready: bool) -> tuple[Level, str]:
    """One sentence for whoever is on call; the worst first."""
    if not ready:
        return "alarm", "The service is not ready: no worker is up, or it is starting or shutting down."
    alarms = sorted((alarm for model in models for alarm in model.drift.alarms), key=lambda alarm: -alarm.evidence)
    if alarms:
        others = f" ({len(alarms) - 1} more)" if len(alarms) > 1 else ""
        return "alarm", f"The traffic is unlike the calibration's: {alarms[0].words}{others}."
    if (lately.error_share or 0) > NOTEWORTHY_SHARE:
        return "warning", f"{percent(lately.error_share or 0)} of the requests failed in the last five minutes."
    if (lately.refused_share or 0) > NOTEWORTHY_SHARE:
        return (
            "warning",
            f"{percent(lately.refused_share or 0)} of the requests were refused in the last five minutes.",
        )
    return _of_flags(models)


def _of_flags(models: list[ModelMonitor]) -> tuple[Level, str]:
    busiest = max(models, key=lambda model: model.flagged.hour.num_images, default=None)
    if busiest is None or busiest.flagged.hour.share is None:
        return "no traffic", "No images came in the last hour."
    hour = busiest.flagged.hour
    told = f"{percent(busiest.flagged.hour.share)} of {hour.num_images:,} images were flagged in the last hour"
    if hour.low > busiest.promised_share:
        return "warning", f"{told}, where {promise(busiest.promised_share)} is promised; it may still be chance."
    return "normal", f"The traffic is normal: {told}, where {promise(busiest.promised_share)} is promised at most."


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
