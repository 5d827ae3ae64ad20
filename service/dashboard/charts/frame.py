"""What charts have in common: axes with round numbers, and the figure around a drawing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 1000.0, 100.0  # of a drawing's own coordinates; it is stretched to its place
Format = Callable[[float], str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Axis:
    """From `low` at the bottom to `high` at the top."""

    low: float
    high: float
    ticks: tuple[float, ...]
    format: Format

    def height(self, value: float) -> float:
        """In drawing's coordinates, from the top; what lies outside is drawn at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(HEIGHT * (1 - min(1.0, max(0.0, share))), 1)


def axis_to(largest: float, *, format: Format, least: float = 0.0, num_ticks: int = 3) -> Axis:
    """From zero to a round number that is at least `largest`, and at least `least`."""
    top = max(largest, least, 1e-12)
    step = _round_up(top / num_ticks)
    count = min(num_ticks, math.ceil(top / step - 1e-9))  # the step is round to as many digits, so it may suffice
    ticks = tuple(step * number for number in range(count + 1))
    return Axis(low=0.0, high=ticks[-1], ticks=ticks, format=format)


def frame(drawing: str, *, axis: Axis, along: Sequence[tuple[float, str]], label: str, height: int = 150) -> str:
    """A drawing between its axes; along: labels below, each with its place in [0, 1]."""
    lines = "".join(
        f'<line class="{"baseline" if number == 0 else "gridline"}" x1="0" x2="{WIDTH:g}" '
        f'y1="{axis.height(tick):g}" y2="{axis.height(tick):g}"/>'
        for number, tick in enumerate(axis.ticks)
    )
    texts = [axis.format(tick) for tick in axis.ticks]
    up = "".join(
        f'<span style="bottom:{100 - axis.height(tick):g}%">{escape(text)}</span>'
        for tick, text in zip(axis.ticks, texts, strict=True)
    )
    below = "".join(f'<span style="left:{100 * place:g}%">{escape(text)}</span>' for place, text in along)
    width = max(map(len, texts)) * 7 + 4
    style = f"--height:{height}px;--y-width:{width}px"
    return (
        f'<figure class="chart" role="img" aria-label="{escape(label)}" style="{style}"><div class="y">{up}</div>'
        f'<div class="plot"><svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" preserveAspectRatio="none" aria-hidden="true">'
        f'{lines}{drawing}</svg></div><div class="x">{below}</div></figure>'
    )


def legend(*entries: tuple[str, str]) -> str:
    """Of (class of the mark, what it stands for)."""
    marks = "".join(f'<li><i class="{kind}"></i>{escape(text)}</li>' for kind, text in entries)
    return f'<ul class="legend">{marks}</ul>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= value * (1 - 1e-9))
