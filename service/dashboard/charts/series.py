"""Lines over time."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from service.dashboard.charts.frame import WIDTH, Axis, frame

Values = Sequence[float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """Values at equal steps, None where there is none; kind: the class that colours it."""

    values: Values
    kind: str = ""
    filled: bool = False


def series(
    lines: Sequence[Line],
    *,
    axis: Axis,
    along: Sequence[tuple[float, str]],
    label: str,
    band: tuple[Values, Values] | None = None,
    promise: float | None = None,
) -> str:
    """band: lower and upper ends of an interval; promise: a level, drawn dashed."""
    drawing = "" if band is None else _band(*band, axis)
    for line in lines:
        drawing += _line(line, axis)
    if promise is not None:
        height = axis.height(promise)
        drawing += f'<line class="promise" x1="0" x2="{WIDTH:g}" y1="{height:g}" y2="{height:g}"/>'
    return frame(drawing, axis=axis, along=along, label=label)


def _line(line: Line, axis: Axis) -> str:
    drawn = ""
    for run in _runs(line.values):
        points = [f"{_x(index, line.values):g} {axis.height(value):g}" for index, value in run]
        path = "M" + "L".join(points if len(points) > 1 else points * 2)  # a single one is a dot
        if line.filled:
            first, last = _x(run[0][0], line.values), _x(run[-1][0], line.values)
            floor = axis.height(axis.low)
            drawn += f'<path class="area" d="{path}L{last:g} {floor:g}L{first:g} {floor:g}Z"/>'
        drawn += f'<path class="{f"line {line.kind}".strip()}" d="{path}"/>'
    return drawn


def _band(low: Values, high: Values, axis: Axis) -> str:
    drawn = ""
    for run in _runs(low):
        there = [f"{_x(index, low):g} {axis.height(value):g}" for index, value in run]
        back = [f"{_x(index, low):g} {axis.height(high[index] or 0):g}" for index, _ in reversed(run)]
        drawn += f'<path class="area" d="M{"L".join(there + back)}Z"/>'
    return drawn


def _runs(values: Values) -> list[list[tuple[int, float]]]:
    """Stretches without a gap."""
    known = groupby(enumerate(values), key=lambda pair: pair[1] is not None)
    return [[(index, value) for index, value in run if value is not None] for there, run in known if there]


def _x(index: int, values: Values) -> float:
    return round(WIDTH * index / max(1, len(values) - 1), 1)
