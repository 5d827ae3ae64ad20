"""The figures as tables: medians over rounds, the range beside them."""

import statistics
from collections.abc import Iterable, Sequence
from itertools import groupby

from rich.table import Table

from tests.benchmarks.serving.asked import Asked
from tests.benchmarks.serving.overload import Overload
from tests.benchmarks.serving.rounds import Row

MEBIBYTE = 1024 * 1024
CORES = ("server cores", "generator", "others")


def loads(rows: Sequence[Row]) -> Table:
    """One row for each server under each load."""
    table = Table(title="Load, each server alone on the machine with the generator; median (range) over rounds")
    table.add_column("request")
    for heading in ("conn.", "server", "requests/s", "p50 ms", "p99 ms", "status / socket errors", "peak MiB"):
        table.add_column(heading, justify="left" if heading == "server" else "right")
    for heading in CORES:
        table.add_column(heading, justify="right")
    ordered = sorted(rows, key=lambda row: (row.images, row.connections))
    for (images, connections), same in groupby(ordered, key=lambda row: (row.images, row.connections)):
        by_server: dict[str, list[Row]] = {}
        for row in same:
            by_server.setdefault(row.server, []).append(row)
        for server, found in by_server.items():
            last = server == list(by_server)[-1]
            request = f"{images} image{'s' if images > 1 else ''}: {found[0].form}"
            table.add_row(request, str(connections), server, *_figures(found), end_section=last)
    return table


def _figures(rows: Sequence[Row]) -> list[str]:
    load = [row.load for row in rows]
    return [
        spread([one.requests_per_second for one in load], ".0f"),
        spread([one.p50_ms for one in load], ".2f"),
        spread([one.p99_ms for one in load], ".1f"),
        f"{sum(one.status_errors for one in load)} / {sum(one.socket_errors + one.timeouts for one in load)}",
        f"{max(row.peak_bytes for row in rows) / MEBIBYTE:.0f}",
        *(spread(values, ".2f") for values in zip(*map(_cores, rows), strict=True)),
    ]


def _cores(measured: Row | Overload) -> tuple[float, float, float]:
    """How many the server, the generator and all else kept busy."""
    load, spent = measured.load, measured.spent
    seconds = (spent.server_cpu_seconds, load.generator_cpu_seconds, spent.others_cpu_seconds)
    return tuple(one / spent.seconds for one in seconds)  # type: ignore[return-value]


def spread(values: Sequence[float], style: str) -> str:
    """Their median; of several, their range."""
    median = format(statistics.median(values), style)
    return median if len(values) == 1 else f"{median} ({min(values):{style}}-{max(values):{style}})"


def processor(rows: Sequence[Row]) -> Table:
    """Milliseconds of processor time that a request costs."""
    table = Table("request", "server", "server CPU ms/request", "generator CPU ms/request", title="Processor time")
    ordered = sorted(rows, key=lambda row: row.images)
    for images, same in groupby(ordered, key=lambda row: row.images):
        by_server: dict[str, list[Row]] = {}
        for row in same:
            by_server.setdefault(row.server, []).append(row)
        for server, found in by_server.items():
            answered = max(1, sum(row.load.requests for row in found))
            spent = sum(row.spent.server_cpu_seconds for row in found)
            sent = sum(row.load.generator_cpu_seconds for row in found)
            table.add_row(
                f"{images} image{'s' if images > 1 else ''}",
                server,
                f"{1e3 * spent / answered:.2f}",
                f"{1e3 * sent / answered:.3f}",
                end_section=server == list(by_server)[-1],
            )
    return table


def overloads(found: Iterable[Overload]) -> Table:
    """One row for each multiple of the peak."""
    table = Table(title="Overload of ours: requests on a schedule that does not wait for answers")
    headings = ("of peak", "asked/s", "answered/s", "200/s", "of peak", "503", "other errors")
    for heading in (*headings, "probes: p99 / slowest ms (failed)", "quick again after s", *CORES):
        table.add_column(heading, justify="right")
    for one in found:
        load = one.load
        probes = "\n".join(
            f"{route} {times.p99_ms:.0f} / {times.max_ms:.0f} ({times.failed} of {times.count})"
            for route, times in one.probes.items()
        )
        table.add_row(
            f"{one.factor:g} x {one.peak:.0f}",
            f"{one.asked_rate:.0f}",
            f"{one.offered:.0f}",
            f"{one.goodput:.0f}",
            f"{one.goodput / one.peak:.0%}",
            f"{one.refused_share:.0%}",
            str(load.failed + load.socket_errors + load.timeouts),
            probes,
            f"{one.recovery_seconds:.1f}",
            *(f"{cores:.2f}" for cores in _cores(one)),
            end_section=True,
        )
    return table


def verdicts(found: Iterable[Asked]) -> Table:
    """What was asked and what was reached."""
    table = Table("of ours", "median (range)", "asked", "reached", title="Asked")
    for asked in found:
        figures = spread(asked.figures, ".2f")
        table.add_row(asked.what, figures, f"{asked.sign} {asked.limit:g}", "yes" if asked.reached else "NO")
    return table
