"""The service on Ray Serve beside `lgm serve`, in one run on one machine.

    python -m tests.benchmarks.ray_serve [--rounds 2] [--seconds 4] [--connections 1,8,32]

Every round starts each server in turn, alone beside the load generator (wrk, with PNG requests), as
tests.benchmarks.serving does: `lgm serve` with one worker process and with two, then service.scale on a Ray of its
own with one replica and with two, of one worker process each. Ratios are of the same round, over the plain service
with one worker. Needs wrk, the extra `scale`, and the data set in LGM_DATA_DIR.
"""

import sys
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from detectors import SHIPPED_BUNDLE
from model.errors import DataError
from tests.benchmarks.serving import forms
from tests.benchmarks.serving.contenders import RIVALS, Contender, Setting, Start, batch_for_ours
from tests.benchmarks.serving.errors import BenchmarkError
from tests.benchmarks.serving.processes import free_ports
from tests.benchmarks.serving.rounds import Plan, Row
from tests.benchmarks.serving.run import Run
from tests.benchmarks.serving.tables import spread
from tests.ray_cluster import ray_environment

WIDTH = 160


def start_plain(setting: Setting, *, workers: int) -> Start:
    (port,) = free_ports(1)
    command = [setting.own("lgm"), "serve", "--bundle", str(setting.bundle), "--port", str(port)]
    command += ["--workers", str(workers), "--threads", "1", "--no-dashboard", "--quarantine", "off"]
    return Start(command=command, port=port)


def start_ray(setting: Setting, *, replicas: int) -> Start:
    (port,) = free_ports(1)
    command = [sys.executable, "-m", f"{RIVALS}.ray_serve_app", str(port), str(setting.bundle), str(replicas)]
    return Start(command=command, port=port, environment=ray_environment(setting.folder))


def plain(workers: int) -> Contender:
    return Contender(
        name=f"plain, {workers}",
        settings=f"lgm serve --workers {workers} --threads 1",
        start=partial(start_plain, workers=workers),
        ready="/readyz",
        single=lambda setting: forms.png_file("/v1/predict"),
        batch=batch_for_ours,
    )


def on_ray(replicas: int) -> Contender:
    return Contender(
        name=f"Ray Serve, {replicas}",
        settings=f"replicas: {replicas}, each with one worker process of one thread; Ray {version('ray')}",
        start=partial(start_ray, replicas=replicas),
        ready="/readyz",
        announced="is ready at",  # the first replica answers before the others are there
        single=lambda setting: forms.png_file("/v1/predict"),
        batch=batch_for_ours,
    )


BASELINE = plain(1)
CONTENDERS = (BASELINE, plain(2), on_ray(1), on_ray(2))


def ratios(rows: Sequence[Row]) -> Table:
    """Over the baseline of the same round; medians, and their range."""
    headings = ("server", "conn.", "requests/s", "p50", "p99", "peak memory", "CPU a request")
    table = Table(*headings, title=f"Over {BASELINE.name}, of the same round; median (range)")
    servers, connections = (dict.fromkeys(getattr(row, name) for row in rows) for name in ("server", "connections"))
    for server, count in product(servers, connections):
        pairs = [pair for pair in _pairs(rows) if (pair[0].server, pair[0].connections) == (server, count)]
        figures = zip(*(_compare(*pair) for pair in pairs), strict=True)
        if pairs:
            table.add_row(server, str(count), *(spread(values, ".2f") for values in figures))
    return table


def _pairs(rows: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    """Each but the baseline's, with the baseline's."""
    base = {(row.round, row.connections): row for row in rows if row.server == BASELINE.name}
    for row in rows:
        if row.server != BASELINE.name:
            yield row, base[row.round, row.connections]


def _compare(row: Row, base: Row) -> tuple[float, ...]:
    return (
        row.load.requests_per_second / base.load.requests_per_second,
        row.load.p50_ms / base.load.p50_ms,
        row.load.p99_ms / base.load.p99_ms,
        row.peak_bytes / base.peak_bytes,
        (row.spent.server_cpu_seconds / row.load.requests) / (base.spent.server_cpu_seconds / base.load.requests),
    )


def main(
    bundle: Annotated[Path, typer.Option(help="A bundle's folder.")] = SHIPPED_BUNDLE,
    data: Annotated[str, typer.Option(help="Data set whose test images are sent, from LGM_DATA_DIR.")] = "mnist",
    connections: Annotated[str, typer.Option(help="Connections that send one image a request.")] = "1,8,32",
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Length of each load.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each server is measured.")] = 2,
    output: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = Path("runs/ray-serve.json"),
) -> None:
    """Measure, print tables and write every figure."""
    counts = tuple(int(number) for number in connections.split(","))
    plan = Plan(connections=counts, batch_connections=(), factors=(), seconds=seconds, rounds=rounds)
    console = Console(width=WIDTH)
    try:
        run = Run(bundle=bundle, data=data, rivals=Path(".venv-rivals"), plan=plan, console=console)
        run.carry_out(CONTENDERS)
    except (BenchmarkError, DataError) as error:
        raise SystemExit(f"error: {error}") from None
    run.report()
    console.print(ratios(run.rows))
    run.write(output)


if __name__ == "__main__":
    typer.run(main)
