"""What is asked of ours, as ratios of figures of the same round."""

import math
import operator
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from tests.benchmarks.serving.contenders import LITSERVE, OURS
from tests.benchmarks.serving.overload import Overload
from tests.benchmarks.serving.rounds import InProcess, Row
from tests.benchmarks.serving.wrk import Load

COMPARED_CONNECTIONS = 32
PROBE_LIMIT_MS = 100
Compare = Callable[[float, float], bool]
SIGNS: dict[str, Compare] = {">=": operator.ge, "<=": operator.le, "<": operator.lt}


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """One figure a round (or one in all), and what it must be."""

    what: str
    figures: tuple[float, ...]
    sign: str
    limit: float

    @property
    def median(self) -> float:
        return statistics.median(self.figures)

    @property
    def reached(self) -> bool:
        return SIGNS[self.sign](self.median, self.limit)


def judge(rows: Sequence[Row], in_process: Sequence[InProcess], overloads: Iterable[Overload]) -> list[Asked]:
    """All of it that was measured. in_process: one a round."""
    found = [*_against_litserve(rows), *_against_all(rows), *_against_in_process(rows, in_process)]
    scheduled = list(overloads)
    most = max((overload.goodput for overload in scheduled), default=0.0)
    for overload in scheduled:
        if overload.factor > 1:
            found += _under(overload, most)
    return [asked for asked in found if asked.figures]


def _against_litserve(rows: Sequence[Row]) -> list[Asked]:
    pairs = [
        (ours.load, theirs.load)
        for ours in _singles(rows, COMPARED_CONNECTIONS)
        for theirs in _singles(rows, COMPARED_CONNECTIONS)
        if (ours.server, theirs.server) == (OURS, LITSERVE) and ours.round == theirs.round
    ]
    where = f"ours / {LITSERVE} at {COMPARED_CONNECTIONS} connections"
    rates = tuple(_ratio(ours.requests_per_second, theirs.requests_per_second) for ours, theirs in pairs)
    tails = tuple(_ratio(_slow(ours, ours.p99_ms), _slow(theirs, theirs.p99_ms)) for ours, theirs in pairs)
    return [
        Asked(what=f"requests a second, {where}", figures=rates, sign=">=", limit=2),
        Asked(what=f"p99, {where}", figures=tails, sign="<=", limit=1),
    ]


def _against_all(rows: Sequence[Row]) -> list[Asked]:
    figures = []
    for ours in (row for row in _singles(rows, 1) if row.server == OURS):
        others = [
            _slow(row.load, row.load.p50_ms)
            for row in _singles(rows, 1)
            if row.round == ours.round and row.server != OURS
        ]
        if others:
            figures.append(_ratio(_slow(ours.load, ours.load.p50_ms), min(others)))
    return [Asked(what="p50, ours / the best other's at 1 connection", figures=tuple(figures), sign="<", limit=1)]


def _against_in_process(rows: Sequence[Row], in_process: Sequence[InProcess]) -> list[Asked]:
    best: dict[int, float] = {}
    for row in rows:
        if row.server == OURS and row.images > 1:
            best[row.round] = max(best.get(row.round, 0), row.images * row.load.requests_per_second)
    figures = tuple(_ratio(found, in_process[number].images_per_second) for number, found in best.items())
    return [Asked(what="images a second in batches, ours / in process", figures=figures, sign=">=", limit=0.9)]


def _under(overload: Overload, most: float) -> list[Asked]:
    """most: the greatest goodput of all scheduled loads. Requests that come at any moment cost more than those of a
    closed loop, whose answers go out together and bring the next requests together: its peak none of them reaches."""
    load = f"at {overload.factor:g} times the closed loop's peak"
    goodput = _ratio(overload.goodput, most)
    asked = [Asked(what=f"goodput / the most on a schedule, {load}", figures=(goodput,), sign=">=", limit=0.9)]
    if overload.factor <= 2:
        slowest = (overload.slowest_probe_ms,)
        asked.append(Asked(what=f"slowest probe in ms, {load}", figures=slowest, sign="<=", limit=PROBE_LIMIT_MS))
    return asked


def _singles(rows: Sequence[Row], connections: int) -> list[Row]:
    return [row for row in rows if row.images == 1 and row.connections == connections]


def _slow(load: Load, milliseconds: float) -> float:
    """Who answered nothing was not fast."""
    return milliseconds if load.requests else math.inf


def _ratio(one: float, other: float) -> float:
    return one / other if other else math.inf
