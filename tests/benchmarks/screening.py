"""Screening (every default detector, fused) against the bare network's forward pass, side by side in one run.

    python -m tests.benchmarks.screening [--bundle DIR] [--threads 1]

Every round runs each case, one after the other: the network, the screener as `lgm screen` has it, and, on a CPU, both
as the graphs that the service's workers make of their screener. A ratio is the median over rounds.
"""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from detectors import SHIPPED_BUNDLE, Screener, load_bundle
from service.graph import EXAMPLE_SIZE, graph_of
from tests.benchmarks.loss import describe_run, synchronise

ASKED = 1.3
BATCHES = (1, 16, 64, 256)
WARM_UP = 3
Judge = Callable[[Tensor], object]


def cases_of(screener: Screener) -> dict[str, Judge]:
    """What is timed, by name."""
    cases: dict[str, Judge] = {"network": screener.network, "screening": screener.screen}
    if screener.device.type == "cpu":
        example = torch.rand(EXAMPLE_SIZE, *screener.image_format.shape)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cases["network graph"] = torch.jit.trace(screener.network, (example,))  # type: ignore[no-untyped-call]
        cases["screening graph"] = graph_of(screener, BATCHES)
    return cases


def time_rounds(cases: Mapping[str, Judge], images: Tensor, repeats: int) -> dict[str, list[float]]:
    """Seconds of each round after the first ones, by case."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(WARM_UP + repeats):
        for name, judge in cases.items():
            synchronise(images.device)
            start = time.perf_counter()
            judge(images)
            synchronise(images.device)
            seconds[name].append(time.perf_counter() - start)
    return {name: of[WARM_UP:] for name, of in seconds.items()}


def ratio(own: list[float], base: list[float]) -> float:
    return statistics.median(one / other for one, other in zip(own, base, strict=True))


def cells(seconds: Mapping[str, list[float]]) -> Iterator[str]:
    """Milliseconds of each case, then screening over the network alone, like against like and as it is served."""
    for of in seconds.values():
        yield f"{1e3 * statistics.median(of):.2f}"
    yield f"{ratio(seconds['screening'], seconds['network']):.2f}"
    if (graph := seconds.get("screening graph")) is not None:
        yield f"{ratio(graph, seconds['network graph']):.2f}"
        yield f"{ratio(graph, seconds['network']):.2f}"


def main(
    bundle: Annotated[Path, typer.Option(help="A bundle's folder.")] = SHIPPED_BUNDLE,
    threads: Annotated[int, typer.Option(help="Threads of a CPU run.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Time of screening against the network alone, for several batch sizes."""
    torch.set_num_threads(threads)
    console, screener = Console(width=130), load_bundle(bundle, device)
    repeats = {size: max(30, 2_000 // size) for size in BATCHES}
    for name, value in describe_run(torch.device(device), repeats).items():
        if name not in ("n", "d"):
            console.print(f"{name}: {value}", highlight=False)
    console.print(f"{screener.name} {screener.version}: {', '.join(screener.fusion.names)}", highlight=False)
    with torch.inference_mode():
        cases = cases_of(screener)
        graphs = ("graph / graph", "graph / network") if len(cases) > 2 else ()
        names = (f"{name}, ms" for name in cases)
        table = Table("images", *names, "ratio", *graphs, title=f"asked: a ratio of at most {ASKED}")
        for size, count in repeats.items():
            images = torch.rand(size, *screener.image_format.shape, device=device)
            table.add_row(str(size), *cells(time_rounds(cases, images, count)))
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
