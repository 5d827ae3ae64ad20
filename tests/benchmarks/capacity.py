"""What one replica takes, as a curve for `lgm capacity`; and whether two replicas behave as it says.

    python -m tests.benchmarks.capacity --output deploy/capacity/curve.json
    python -m tests.benchmarks.capacity --check deploy/capacity/curve.json

Needs Linux with two processors, wrk, and MNIST in LGM_DATA_DIR. A replica is `lgm serve` with one worker, pinned to a
processor; there is one on each, both loaded alike, since processors that share a core or a cache are slower when the
neighbour works. The curve is the first one's processor time, which does not count the generators. Single images come
at random moments but for the greatest load: answers that come together bring the next requests together, which cost
less. For --check half of the requests go to either, at other random moments.
"""

import json
import os
import sys
import tempfile
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil
import torch
import typer
from rich.console import Console
from rich.table import Table

from detectors import SHIPPED_BUNDLE, load_bundle
from model.config import DataConfig
from model.data import load_splits
from service.capacity.curve import Curve, Point, read_curve
from service.capacity.planning import replica_of
from service.capacity.simulation import simulate
from tests.benchmarks.loss import describe_run
from tests.benchmarks.serving import forms, wrk
from tests.benchmarks.serving.processes import MemoryWatch, ProcessorMeter, ServerProcess, free_ports
from tests.processes import workers_of

CLOSED_LOADS = ((1, 64), (4, 16), (16, 8), (64, 4))  # images a request, connections; the first one is the peak
RANDOM_SHARES, RANDOM_CONNECTIONS = (0.2, 0.4, 0.6, 0.8), 256  # of the peak
SECONDS, NUM_IMAGES = 5, 1024
CHECKED_SHARES, CHECK_SECONDS = (0.3, 0.5, 0.7), 12
QUEUE_WAIT = "lgm_queue_wait_seconds_bucket"
CHECK_REQUESTS = 20_000


@contextmanager
def replica(core: int, folder: Path, *settings: str) -> Iterator[ServerProcess]:
    """`lgm serve` on this processor, ready."""
    (port,) = free_ports(1)
    command = ["taskset", "--cpu-list", str(core), str(Path(sys.executable).with_name("lgm")), "serve"]
    command += ["--port", str(port), "--state-folder", str(folder / f"state{core}"), "--no-dashboard", *settings]
    log = folder / f"log{core}"
    server = ServerProcess(command, port=port, environment=dict(os.environ), folder=folder, log=log)
    try:
        server.await_ready("/readyz")
        yield server
    finally:
        server.stop()


class Counters:
    """What the replica's metrics and the kernel's accounts say, of what happens until the next look."""

    def __init__(self, server: ServerProcess, root: int) -> None:
        self._url, self._root = f"{server.url}/metrics", root
        self._before = self._look()

    def since(self) -> dict[str, float]:
        before, self._before = self._before, self._look()
        return {name: self._before[name] - before[name] for name in before}

    def _look(self) -> dict[str, float]:
        exported = read_metrics(self._url)
        (worker,) = workers_of(self._root)
        return {
            "batches": exported["lgm_batch_size_count"],
            "images": exported["lgm_batch_size_sum"],
            "batch_seconds": exported["lgm_inference_duration_seconds_sum"],
            "loop_seconds": sum(psutil.Process(self._root).cpu_times()[:2]),
            "worker_seconds": sum(worker.cpu_times()[:2]),
        }


class QueueWaits:
    """What the replica's own metric says of waits in its queue since it was made."""

    def __init__(self, server: ServerProcess) -> None:
        self._url = f"{server.url}/metrics"
        self._before = self._buckets()

    def median(self) -> float:
        """Seconds, interpolated within a bucket as Prometheus does."""
        now = self._buckets()
        bounds = sorted(now)
        counts = [now[bound] - self._before[bound] for bound in bounds]
        return float(np.interp(counts[-1] / 2, [0.0, *counts[:-1]], [0.0, *bounds[:-1]]))

    def _buckets(self) -> dict[float, float]:
        found = {name: value for name, value in read_metrics(self._url).items() if name.startswith(QUEUE_WAIT)}
        return {float(name.split('"')[1]): value for name, value in found.items()}


def read_metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = [line for line in answer.read().decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def form_of(images_per_request: int, name: str, shape: tuple[int, int, int]) -> forms.Form:
    if images_per_request == 1:
        return forms.png_file("/v1/predict")
    return forms.binary_tensors(f"/v2/models/{name}/infer", size=images_per_request, shape=shape)


def measure(folder: Path, console: Console) -> Curve:
    """Every load in turn against one replica."""
    screener = load_bundle(SHIPPED_BUNDLE)
    images = load_splits(DataConfig(name="mnist")).test.images[:NUM_IMAGES]
    points = []
    with replica(0, folder) as server, replica(1, folder) as neighbour, MemoryWatch(server) as memory:
        servers, meters = (server, neighbour), [ProcessorMeter(one) for one in (server, neighbour)]
        for size, connections in CLOSED_LOADS:
            form = form_of(size, screener.name, screener.image_format.shape)
            wrk.write_plan(folder / f"plan{size}", form, form.bodies(images, size=size))
            points.append(measure_point(servers, folder, size=size, connections=connections))
            console.print(points[-1], highlight=False)
        for share in RANDOM_SHARES:
            rate = share * points[0].requests_per_second
            points.append(measure_point(servers, folder, size=1, connections=RANDOM_CONNECTIONS, rate=rate))
            console.print(points[-1], highlight=False)
        report_others(meters, console)
        series = len(read_metrics(f"{server.url}/metrics"))
    described = describe_run(torch.device("cpu"), {})
    return Curve(
        schema_version=1,
        hardware=f"one processor of {described['hardware']}",
        bundle=f"{screener.name} {screener.version}",
        command="python -m tests.benchmarks.capacity --output",
        cores=1,
        workers=1,
        points=tuple(points),
        memory_bytes=memory.peak_bytes,
        bundle_bytes=sum(path.stat().st_size for path in SHIPPED_BUNDLE.rglob("*") if path.is_file()),
        request_bytes=(folder / "plan1").stat().st_size // NUM_IMAGES,
        series=series,
    )


def measure_point(
    servers: Sequence[ServerProcess], folder: Path, *, size: int, connections: int, rate: float | None = None
) -> Point:
    """Of the first server, after a second of the same load."""
    plan = folder / f"plan{size}"
    side_by_side(servers, plan, connections=connections, seconds=1, rate=rate)
    counters = Counters(servers[0], servers[0].pid)
    load, _ = side_by_side(servers, plan, connections=connections, seconds=SECONDS, rate=rate)
    counted = counters.since()
    if load.status_errors or load.socket_errors:
        raise SystemExit(f"{load.status_errors} refused, {load.socket_errors} broken: no curve of that")
    return Point(
        images_per_request=size,
        connections=connections,
        at_random=rate is not None,
        requests_per_second=round(load.requests_per_second, 1),
        p50_seconds=load.p50_ms / 1e3,
        p99_seconds=load.p99_ms / 1e3,
        images_per_batch=round(counted["images"] / counted["batches"], 2),
        batch_seconds=round(counted["batch_seconds"] / counted["batches"], 6),
        loop_seconds_per_request=round(counted["loop_seconds"] / load.requests, 7),
        worker_seconds_per_batch=round(counted["worker_seconds"] / counted["batches"], 6),
    )


def check(curve: Curve, folder: Path, console: Console) -> None:
    """Two replicas at shares of what the curve says they can, beside what the simulation says."""
    images = load_splits(DataConfig(name="mnist")).test.images[:NUM_IMAGES]
    form = forms.png_file("/v1/predict")
    wrk.write_plan(folder / "plan", form, form.bodies(images, size=1))
    simulated = replica_of(curve)
    most = max(point.requests_per_second for point in curve.points if point.images_per_request == 1)
    table = Table("replicas' load", "answered/s", "not", "p50 ms", "p99 ms", "simulated", "queue p50 ms", "simulated")
    with ExitStack() as stack:
        servers = [stack.enter_context(replica(core, folder)) for core in (0, 1)]
        for server in servers:
            wrk.run(server.url, folder / "plan", connections=16, seconds=2)
        meters = [ProcessorMeter(server) for server in servers]
        for share in CHECKED_SHARES:
            waits = [QueueWaits(server) for server in servers]
            loads = side_by_side(
                servers, folder / "plan", connections=RANDOM_CONNECTIONS, seconds=CHECK_SECONDS, rate=share * most
            )
            found = simulate(
                simulated,
                requests_per_second=share * most,
                num_requests=CHECK_REQUESTS,
                generator=np.random.default_rng(0),
            )
            table.add_row(
                f"{share:.0%} of {2 * most:.0f}/s",
                f"{sum(load.ok / load.seconds for load in loads):.0f}",
                str(sum(load.refused + load.failed for load in loads)),
                " ".join(f"{load.p50_ms:.1f}" for load in loads),
                " ".join(f"{load.p99_ms:.1f}" for load in loads),
                f"{found.latency(50) * 1e3:.1f} {found.latency(99) * 1e3:.1f}",
                " ".join(f"{1e3 * wait.median():.1f}" for wait in waits),
                f"{found.queue_wait(50) * 1e3:.1f}",
            )
        loads = side_by_side(servers, folder / "plan", connections=64, seconds=CHECK_SECONDS)
        answered = sum(load.requests_per_second for load in loads)
        console.print(f"both as fast as they can: {answered:.0f} requests/s, of {2 * most:.0f} by the curve")
        report_others(meters, console)
    console.print(table)


def side_by_side(
    servers: Sequence[ServerProcess], plan: Path, *, connections: int, seconds: int, rate: float | None = None
) -> list[wrk.Load]:
    """A generator for each, at the same time; with a rate at independent moments."""

    def drive(place: int) -> wrk.Load:
        return wrk.run(servers[place].url, plan, connections=connections, seconds=seconds, rate=rate, seed=place + 1)

    with ThreadPoolExecutor(len(servers)) as pool:
        return list(pool.map(drive, range(len(servers))))


def report_others(meters: Sequence[ProcessorMeter], console: Console) -> None:
    """What is neither server's, since each meter takes the other one for others."""
    first, second = (meter.spent() for meter in meters)
    others = (first.others_cpu_seconds - second.server_cpu_seconds) / first.seconds
    console.print(f"generators and whatever else ran took {others:.2f} cores", highlight=False)


def main(
    output: Annotated[Path | None, typer.Option(help="Measure a curve into this file.")] = None,
    curve: Annotated[Path | None, typer.Option("--check", help="Hold two replicas against this curve.")] = None,
) -> None:
    wrk.require()
    console = Console(width=120)
    with tempfile.TemporaryDirectory() as name:
        if output is not None:
            measured = measure(Path(name), console)
            output.write_text(json.dumps(measured.model_dump(mode="json"), indent=1) + "\n")
        if curve is not None:
            check(read_curve(curve), Path(name), console)


if __name__ == "__main__":
    typer.run(main)
