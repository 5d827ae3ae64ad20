"""Numbers as people read them."""

import math
from datetime import datetime

UNITS = ((86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))
MOST_DECIMALS = 4
MINUS = "\u2212"
NONE = "–"
SPACE = "\u00a0"  # a number and its unit stay together


def count(value: float) -> str:
    return f"{value:,.0f}"


def short(value: float) -> str:
    """For an axis: 1,500 -> 1.5k."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}".replace("-", MINUS)


def percent(share: float | None, digits: int | None = None) -> str:
    if share is None:
        return NONE
    value = 100 * share
    if digits is None:
        digits = 2 if value < 1 else 1 if value < 10 else 0
    text = f"{value:.{digits}f}"
    return f"{text.rstrip('0').rstrip('.') if '.' in text else text}{SPACE}%"


def milliseconds(seconds: float | None) -> str:
    if seconds is None:
        return NONE
    value = 1000 * seconds
    return f"{value / 1000:.3g} s" if value >= 1000 else f"{value:.3g} ms"


def nats(value: float | None) -> str:
    if value is None:
        return NONE
    return f"{round(value, 1) + 0.0:.1f}{SPACE}nats".replace("-", MINUS)  # no minus before zero


def moved_nats(value: float | None) -> str:
    """To three significant digits, at most four behind the point: what moves by little is not told as unmoved."""
    if value is None:
        return NONE
    rounded = round(value, MOST_DECIMALS)
    if not rounded:
        return f"0{SPACE}nats"
    decimals = min(MOST_DECIMALS, max(0, 2 - math.floor(math.log10(abs(rounded)))))
    return f"{rounded:+.{decimals}f}{SPACE}nats".replace("-", MINUS)


def ago(seconds: float) -> str:
    """For an axis of time."""
    return f"{seconds / 60:.2g} min ago" if seconds >= 120 else f"{seconds:.0f} s ago"


def rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def duration(seconds: float) -> str:
    """The largest unit that fits, as "20 minutes"."""
    for size, name in UNITS:
        if seconds >= size:
            number = round(seconds / size)
            return f"{number} {name}{'' if number == 1 else 's'}"
    return "less than a second"


def clock(moment: datetime) -> str:
    return f"{moment:%H:%M:%S} UTC"


def date(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def size(num_bytes: float) -> str:
    for limit, name in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if num_bytes >= limit:
            return f"{num_bytes / limit:.3g} {name}"
    return f"{num_bytes:.0f} bytes"


def p_value(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}"
