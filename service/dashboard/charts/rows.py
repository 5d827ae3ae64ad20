"""A row for each class: a share with its interval, or quantiles beside others, on one common scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from service.dashboard.charts.frame import Axis


@dataclass(frozen=True, kw_only=True, slots=True)
class Dot:
    """A value (None: none yet) within its interval; kind: `bad` where it is too much; said: the same in words."""

    name: str
    value: float | None
    low: float
    high: float
    said: str
    kind: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Box:
    """Five quantiles, ascending, of what is and of what it should be like."""

    name: str
    live: Sequence[float] | None
    calibration: Sequence[float] | None
    said: str


def dots(rows: Sequence[Dot], *, axis: Axis, mark: float, label: str) -> str:
    drawn = "".join(
        f'<span class="name">{escape(row.name)}</span><div class="track">{_dot(row, axis)}'
        f'<i class="mark" style="left:{_place(mark, axis):g}%"></i></div>'
        f'<span class="said {row.kind}">{escape(row.said)}</span>'
        for row in rows
    )
    return _rows(drawn, axis, label)


def boxes(rows: Sequence[Box], *, axis: Axis, label: str) -> str:
    drawn = "".join(
        f'<span class="name">{escape(row.name)}</span><div class="track">'
        f"{_box(row.calibration, 'calibration', 13, axis)}{_box(row.live, 'live', 3, axis)}</div>"
        f'<span class="said">{escape(row.said)}</span>'
        for row in rows
    )
    return _rows(drawn, axis, label)


def _rows(drawn: str, axis: Axis, label: str) -> str:
    ticks = "".join(
        f'<span style="left:{_place(tick, axis):g}%">{escape(axis.format(tick))}</span>' for tick in axis.ticks
    )
    return (
        f'<div class="rows" role="group" aria-label="{escape(label)}">{drawn}'
        f'<span></span><div class="axis">{ticks}</div><span></span></div>'
    )


def _dot(row: Dot, axis: Axis) -> str:
    if row.value is None:
        return ""
    left, right = _place(row.low, axis), _place(row.high, axis)
    return (
        f'<i class="interval {row.kind}" style="left:{left:g}%;width:{right - left:.2f}%"></i>'
        f'<i class="dot {row.kind}" style="left:{_place(row.value, axis):g}%"></i>'
    )


def _box(quantiles: Sequence[float] | None, kind: str, top: int, axis: Axis) -> str:
    if quantiles is None:
        return ""
    least, low, median, high, most = (_place(value, axis) for value in quantiles)
    middle = max(0.4, high - low)
    return (
        f'<i class="whisker {kind}" style="left:{least:g}%;width:{most - least:.2f}%;top:{top + 4}px"></i>'
        f'<i class="middle {kind}" style="left:{low:g}%;width:{middle:.2f}%;top:{top}px;height:10px"></i>'
        f'<i class="median" style="left:{median:g}%;top:{top}px;height:10px"></i>'
    )


def _place(value: float, axis: Axis) -> float:
    return 100 - axis.height(value)
