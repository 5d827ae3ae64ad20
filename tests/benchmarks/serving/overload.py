"""More than a server can do: requests on a schedule that does not wait for answers, and probes meanwhile."""

import http.client
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.serving import wrk
from tests.benchmarks.serving.processes import ProcessorMeter, ServerProcess, Spent, get
from tests.benchmarks.serving.wrk import Load

PROBES = ("/healthz", "/readyz", "/metrics")
QUICK_PROBE_MS, RECOVERY_SECONDS = 20, 30
PROBE_PAUSE_SECONDS = 0.02
SETTLE_SECONDS = 1  # in which the generator opens all its connections
SATURATING_CONNECTIONS = 128
# More than the server's queue holds (1,024 by default): with fewer, clients that wait would slow the schedule.
SCHEDULED_CONNECTIONS = 2_048


@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeTimes:
    """Milliseconds that a route took, from connect to the answer's end; failed probes have none."""

    count: int
    failed: int
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, milliseconds: list[float | None]) -> "ProbeTimes":
        answered = sorted(value for value in milliseconds if value is not None) or [0.0]
        return cls(
            count=len(milliseconds),
            failed=milliseconds.count(None),
            p99_ms=answered[math.ceil(0.99 * len(answered)) - 1],
            max_ms=answered[-1],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Overload:
    """So many times the peak: successes a second against it, the share refused, and the probes by route."""

    factor: float
    asked_rate: float
    peak: float
    load: Load
    spent: Spent
    probes: dict[str, ProbeTimes]
    recovery_seconds: float

    @property
    def offered(self) -> float:
        """Answered requests a second."""
        return self.load.requests / self.load.seconds

    @property
    def goodput(self) -> float:
        """Successes a second."""
        return self.load.ok / self.load.seconds

    @property
    def refused_share(self) -> float:
        return self.load.refused / max(1, self.load.requests)

    @property
    def slowest_probe_ms(self) -> float:
        """For ever where one failed, or none was asked."""
        return max(math.inf if times.failed or not times.count else times.max_ms for times in self.probes.values())


def overload(server: ServerProcess, plan: Path, *, factors: tuple[float, ...], seconds: int) -> Iterator[Overload]:
    """The closed loop's peak first, then each multiple of it."""
    closed = wrk.run(server.url, plan, connections=SATURATING_CONNECTIONS, seconds=seconds)
    peak = closed.requests_per_second
    for factor in factors:
        with Probing(server.port) as probing:
            meter = ProcessorMeter(server)
            load = wrk.run(server.url, plan, connections=SCHEDULED_CONNECTIONS, seconds=seconds, rate=factor * peak)
            spent = meter.spent(generator_cpu_seconds=load.generator_cpu_seconds)
        yield Overload(
            factor=factor,
            asked_rate=factor * peak,
            peak=peak,
            load=load,
            spent=spent,
            probes=probing.times(),
            recovery_seconds=_recover(server),
        )


def _recover(server: ServerProcess) -> float:
    """Seconds until a probe is quick again (or the limit): what one load left behind must not slow the next."""
    started = time.monotonic()
    while (spent := time.monotonic() - started) < RECOVERY_SECONDS:
        milliseconds = time_probe(server.port, PROBES[0])
        if milliseconds is not None and milliseconds < QUICK_PROBE_MS:
            return spent
    return RECOVERY_SECONDS


def time_probe(port: int, route: str) -> float | None:
    """Milliseconds from connect to the answer's end; none where it failed."""
    started = time.perf_counter()
    try:
        status = get(port, route)
    except (OSError, http.client.HTTPException):
        return None
    return 1e3 * (time.perf_counter() - started) if status == 200 else None


class Probing:
    """Asks the probes' routes in turn, each over a connection of its own, while the block runs and has settled."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._milliseconds: dict[str, list[float | None]] = {route: [] for route in PROBES}
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Probing":
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._done.set()
        self._thread.join()

    def times(self) -> dict[str, ProbeTimes]:
        return {route: ProbeTimes.of(found) for route, found in self._milliseconds.items()}

    def _ask(self) -> None:
        self._done.wait(SETTLE_SECONDS)
        while not self._done.is_set():
            for route, found in self._milliseconds.items():
                found.append(time_probe(self._port, route))
            self._done.wait(PROBE_PAUSE_SECONDS)
