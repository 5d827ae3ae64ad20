"""`lgm serve`, LitServe, FastAPI, BentoML and MLServer, side by side in one run: `make bench-serve`.

    python -m tests.benchmarks.serving [--quick] [--servers lgm-guard,LitServe] [--connections 1,32] [--seconds 4]

Every round starts each server in turn, alone on the machine with the load generator (wrk), checks that it answers
what the screener answers, warms it, loads it and stops it. At the end ours is driven past what it can do.
"""

import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console

from detectors import SHIPPED_BUNDLE
from model.errors import DataError
from tests.benchmarks.serving.contenders import CONTENDERS, Contender
from tests.benchmarks.serving.errors import BenchmarkError
from tests.benchmarks.serving.rounds import Plan
from tests.benchmarks.serving.run import Run

OPEN_FILES = 8_192
WIDTH = 180
ALL = ",".join(contender.name for contender in CONTENDERS)
Number = TypeVar("Number", int, float)


def main(
    bundle: Annotated[Path, typer.Option(help="A bundle's folder.")] = SHIPPED_BUNDLE,
    data: Annotated[str, typer.Option(help="Data set whose test images are sent, from LGM_DATA_DIR.")] = "mnist",
    servers: Annotated[str, typer.Option(help="Who is measured.")] = ALL,
    connections: Annotated[str, typer.Option(help="Connections that send one image a request.")] = "1,8,32,128",
    batch_connections: Annotated[str, typer.Option(help="Connections that send 64 images a request.")] = "1,4",
    factors: Annotated[
        str, typer.Option(help="Scheduled loads of ours, in multiples of its peak; empty: none.")
    ] = "0.8,0.9,1,2,4",
    seconds: Annotated[int, typer.Option(min=1, max=60, help="Length of each load; of overload, three times.")] = 4,
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each server is measured.")] = 3,
    quick: Annotated[bool, typer.Option("--quick", help="One round, two seconds each load.")] = False,
    rivals: Annotated[Path, typer.Option(help="The rivals' environment.")] = Path(".venv-rivals"),
    output: Annotated[Path, typer.Option("--json", help="Where the figures go.")] = Path("runs/serving.json"),
) -> None:
    """Measure, print tables and write every figure."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that servers are stopped
    _raise_open_files()
    plan = Plan(
        connections=_numbers(connections, int),
        batch_connections=_numbers(batch_connections, int),
        factors=_numbers(factors, float),
        seconds=2 if quick else seconds,
        rounds=1 if quick else rounds,
    )
    try:
        chosen = _choose(servers)
        run = Run(bundle=bundle, data=data, rivals=rivals, plan=plan, console=Console(width=WIDTH))
        run.carry_out(chosen)
    except (BenchmarkError, DataError) as error:
        raise SystemExit(f"error: {error}") from None
    run.report()
    run.write(output)


def _choose(names: str) -> list[Contender]:
    by_name = {contender.name.lower(): contender for contender in CONTENDERS}
    wanted = [name.strip().lower() for name in names.split(",")]
    if unknown := [name for name in wanted if name not in by_name]:
        raise BenchmarkError(f"unknown server {unknown[0]!r}; there are {ALL}")
    return [by_name[name] for name in wanted]


def _numbers(text: str, read: Callable[[Any], Number]) -> tuple[Number, ...]:
    return tuple(read(number) for number in text.split(",") if number)


def _raise_open_files() -> None:
    """Each connection is a file to both ends; the usual soft limit is 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    typer.run(main)
