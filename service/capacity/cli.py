"""lgm capacity: what a load needs, on paper."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from model.errors import ConfigurationError
from service.capacity.curve import read_curve
from service.capacity.parts import Limits, Part, Traffic, parts, read_limits
from service.settings import Settings

if TYPE_CHECKING:
    from service.capacity.planning import Plan

RATES = (1e3, 1e4, 1e5, 1e6, 1e7)
WIDTH = 120


def capacity(
    curve: Annotated[Path, typer.Option(help="What one replica was measured to take (tests.benchmarks.capacity).")],
    rate: Annotated[
        list[float] | None, typer.Option(help="Images a second in all; may be repeated. [default: 1e3 to 1e7]")
    ] = None,
    cores: Annotated[
        int | None, typer.Option(min=1, max=256, help="Processors of a replica. [default: the curve's]")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=256, help="Workers of a replica. [default: the curve's]")
    ] = None,
    images_per_request: Annotated[int, typer.Option(help="Images of one request.")] = 1,
    wait: Annotated[float, typer.Option(help="Seconds that 99 % of requests may wait for a worker.")] = 0.05,
    load: Annotated[float, typer.Option(help="Most of what a replica can that is planned with, at most 0.95.")] = 0.8,
    busy: Annotated[
        float, typer.Option(help="Most of the time that workers may judge; autoscaling adds replicas at 0.6.")
    ] = 0.6,
    price: Annotated[float, typer.Option(help="Of one replica for an hour, in any currency.")] = 0.1,
    flagged_share: Annotated[float, typer.Option(help="Share of images that is flagged and kept.")] = 0.01,
    access_log_share: Annotated[
        float, typer.Option(help="Share of requests that get a line in the log, as the service's setting says.")
    ] = Settings.model_fields["access_log_share"].default,
    limits: Annotated[Path | None, typer.Option(help="TOML file with limits of the surroundings.")] = None,
    requests: Annotated[int, typer.Option(help="Requests that are simulated for each figure.")] = 5_000,
    seed: Annotated[int, typer.Option(min=0, help="Of the simulated arrivals.")] = 0,
) -> None:
    """Tell how many replicas a load needs, how long it waits, what it costs, and what gives in first."""
    try:
        from service.capacity import planning
    except ImportError as error:
        raise ConfigurationError(f"{error.name} is missing; pip install 'lgm-guard[scale]'") from None
    measured, bounds = read_curve(curve), Limits() if limits is None else read_limits(limits)
    demand = planning.Demand(
        images_per_request=images_per_request,
        most_wait_seconds=wait,
        most_load=load,
        most_busy=busy,
        price_per_hour=price,
        num_requests=requests,
        seed=seed,
    )
    replica = planning.replica_of(measured, cores=cores, workers=workers)
    per_replica = planning.images_per_replica(replica, demand)
    traffic = Traffic(
        images_per_request=images_per_request,
        images_per_replica=per_replica,
        flagged_share=flagged_share,
        access_log_share=access_log_share,
    )
    plans = [planning.plan(replica, demand, rate=one, per_replica=per_replica) for one in rate or RATES]
    console = Console(width=WIDTH)
    console.print(
        f"a replica of {replica.cores} x {measured.hardware} with {replica.workers} worker(s): "
        f"{per_replica:,.0f} images/s, so that 99 % of requests wait at most {wait:g} s "
        f"and workers judge at most {busy:.0%} of the time",
        highlight=False,
    )
    console.print(_plans(plans), _parts(parts(measured, traffic, bounds)))


def _plans(plans: Iterable["Plan"]) -> Table:
    waits = ("p50 wait ms", "p99 wait ms", "of it in the queue")
    table = Table("images/s", "replicas", *waits, "workers busy", "cost of a million images")
    for plan in plans:
        table.add_row(
            f"{plan.rate:,.0f}",
            f"{plan.replicas:,}",
            f"{plan.p50_wait * 1e3:.1f}",
            f"{plan.p99_wait * 1e3:.1f}",
            f"{plan.p99_queue_wait * 1e3:.1f}",
            f"{plan.busy_share:.0%}",
            f"{plan.cost_per_million:.4f}",
        )
    return table


def _parts(found: Iterable[Part]) -> Table:
    table = Table("full at images/s", "what gives in", "with", "remedy")
    for part in found:
        table.add_row(_rate(part.full_at), part.name, part.unit, part.remedy)
    return table


def _rate(full_at: float) -> str:
    if full_at == 0:
        return "at once"
    return "never" if math.isinf(full_at) else f"{full_at:,.0f}"
