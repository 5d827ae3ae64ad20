"""Screening (every default detector, fused) against the bare network's forward pass, side by side in one run.

    python -m tests.benchmarks.screening [--bundle DIR] [--threads 1]

Every round runs both, one after the other; the ratio is the median over rounds of screening / forward.
"""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from detectors import SHIPPED_BUNDLE, load_bundle
from tests.benchmarks.loss import describe_run

ASKED = 1.3
BATCHES = (1, 16, 64, 256)


def paired_ratio(
    first: Callable[[], object], second: Callable[[], object], repeats: int
) -> tuple[float, float, float]:
    """Medians over rounds: seconds of the first, of the second, and first / second of the same round."""
    seconds: list[tuple[float, float]] = []
    for _ in range(3 + repeats):
        start = time.perf_counter()
        first()
        middle = time.perf_counter()
        second()
        seconds.append((middle - start, time.perf_counter() - middle))
    kept = seconds[3:]
    ratio = statistics.median(own / base for own, base in kept)
    return statistics.median(own for own, _ in kept), statistics.median(base for _, base in kept), ratio


def main(
    bundle: Annotated[Path, typer.Option(help="A bundle's folder.")] = SHIPPED_BUNDLE,
    threads: Annotated[int, typer.Option(help="Threads of a CPU run.")] = 2,
    device: Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")] = "cpu",
) -> None:
    """Time of screening against the network alone, for several batch sizes."""
    torch.set_num_threads(threads)
    console, screener = Console(width=110), load_bundle(bundle, device)
    repeats = {size: max(30, 2_000 // size) for size in BATCHES}
    for name, value in describe_run(torch.device(device), repeats).items():
        if name not in ("n", "d"):
            console.print(f"{name}: {value}", highlight=False)
    console.print(f"{screener.name} {screener.version}: {', '.join(screener.fusion.names)}", highlight=False)
    table = Table("images", "network ms", "screening ms", "ratio", "asked")
    for size, count in repeats.items():
        images = torch.rand(size, *screener.image_format.shape, device=device)
        with torch.inference_mode():
            screening, bare, ratio = paired_ratio(
                lambda given=images: screener.screen(given),  # type: ignore[misc]
                lambda given=images: screener.network(given),  # type: ignore[misc]
                count,
            )
        table.add_row(str(size), f"{1e3 * bare:.2f}", f"{1e3 * screening:.2f}", f"{ratio:.2f}", f"<= {ASKED}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
