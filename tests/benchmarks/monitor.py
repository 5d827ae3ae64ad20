"""What watching costs the service, alternating in one run.

    python -m tests.benchmarks.monitor

Counting: processor time of a batch at the observer, with the monitor and with the metrics alone. Telling: requests a
second of a real server under wrk while ten listen to the stream, and while nobody does; and the processor time a
second of the process that speaks HTTP while nothing is asked, which other load on the machine changes little.
"""

import selectors
import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from detectors import SHIPPED_BUNDLE
from detectors.manifest import load_manifest
from service.judgements import Judgements
from service.metrics import Metrics
from service.monitoring.baseline import load_baseline
from service.monitoring.model_watch import STEP_SECONDS, ModelWatch
from service.monitoring.observer import ModelObserver
from service.monitoring.tally import NUM_STEPS
from service.monitoring.traffic import Traffic
from tests.benchmarks.serving import wrk
from tests.benchmarks.serving.forms import png_file
from tests.server import TIMEOUT, Server

ROUNDS, SECONDS, LISTENERS, CONNECTIONS = 4, 3, 10, 16
BATCHES, BATCH_SIZE, TELLINGS = 4_000, 16, 20
SAMPLE = Path(__file__).parents[1] / "samples" / "seven.png"


def judgements(num_images: int) -> Judgements:
    generator, detectors = np.random.default_rng(0), load_manifest(SHIPPED_BUNDLE).detectors
    classes = generator.integers(0, 10, size=num_images)
    p_values = (generator.integers(1, 701, size=num_images) / 701).astype(np.float32)
    evidence = np.repeat(p_values[:, None], len(detectors), 1)
    likelihood = generator.normal(-61, 0.1, size=num_images).astype(np.float32)
    return Judgements(
        classes,
        np.ones((num_images, 10), np.float32),
        likelihood,
        p_values,
        p_values <= 0.01,
        detectors,
        evidence,
        evidence,
    )


def microseconds_an_image(judged: Callable[[Judgements, float], None]) -> float:
    batch = judgements(BATCH_SIZE)
    started = time.process_time()
    for _ in range(BATCHES):
        judged(batch, 0.01)
    return (time.process_time() - started) / (BATCHES * BATCH_SIZE) * 1e6


def counting() -> tuple[float, float]:
    """Microseconds an image: metrics alone, with the monitor."""
    watch = ModelWatch.of(SHIPPED_BUNDLE, load_manifest(SHIPPED_BUNDLE))
    observer = ModelObserver(Metrics(), Traffic(), watch, waiting=lambda: 0)
    alone, watched = [], []
    for _ in range(ROUNDS):
        alone.append(microseconds_an_image(Metrics().batch_judged))
        watched.append(microseconds_an_image(observer.batch_judged))
    return statistics.median(alone), statistics.median(watched)


def wording() -> float:
    """Milliseconds of processor time to tell a full hour of the shipped bundle's ten classes."""
    now = 0.0
    manifest = load_manifest(SHIPPED_BUNDLE)
    watch = ModelWatch(manifest, load_baseline(SHIPPED_BUNDLE, manifest), clock=lambda: now)
    for _ in range(NUM_STEPS):
        watch.batch_judged(judgements(BATCH_SIZE))
        now += STEP_SECONDS
    started = time.process_time()
    for _ in range(TELLINGS):
        watch.tell(watch.gather(), watch.loaded)
    return (time.process_time() - started) / TELLINGS * 1e3


@contextmanager
def listening(url: str, count: int) -> Iterator[None]:
    """So many connections whose stream is taken and thrown away: parsing it would compete with the service."""
    over, host, port = threading.Event(), *url.removeprefix("http://").split(":")
    with selectors.DefaultSelector() as ready, ExitStack() as stack:
        for _ in range(count):
            listener = stack.enter_context(socket.create_connection((host, int(port)), TIMEOUT))
            listener.sendall(b"GET /v1/monitor/stream HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert listener.recv(65536).startswith(b"HTTP/1.1 200")
            ready.register(listener, selectors.EVENT_READ)

        def take() -> None:
            while not over.is_set():
                for key, _ in ready.select(0.5):
                    key.fileobj.recv(65536)  # type: ignore[union-attr]

        taking = threading.Thread(target=take)
        taking.start()
        try:
            yield
        finally:
            over.set()
            taking.join()


def telling(server: Server) -> tuple[list[float], list[float]]:
    """For each round: requests a second with listeners over without; share of a processor that they take."""
    speeds, shares = [], []
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        wrk.write_plan(plan, png_file("/v1/predict"), [SAMPLE.read_bytes()])

        def speed() -> float:
            return wrk.run(server.url, plan, connections=CONNECTIONS, seconds=SECONDS).requests_per_second

        speed()
        for _ in range(ROUNDS):
            before, idle = speed(), processor_share(server)
            with listening(server.url, LISTENERS):
                listened = speed()
                shares.append(processor_share(server) - idle)
            speeds.append(2 * listened / (before + speed()))
    return speeds, shares


def processor_share(server: Server) -> float:
    """Of one processor, that the process takes while nothing is asked of it."""
    process = psutil.Process(server.process.pid)
    before, started = process.cpu_times(), time.monotonic()
    threading.Event().wait(SECONDS)
    after, seconds = process.cpu_times(), time.monotonic() - started
    return (after.user + after.system - before.user - before.system) / seconds


def main() -> None:
    wrk.require()
    table = Table("what", "figure", "lowest to highest of the rounds")
    alone, watched = counting()
    table.add_row("counting an image: metrics alone, with the monitor", f"{alone:.2f} us, {watched:.2f} us", "")
    table.add_row("telling an hour of ten classes", f"{wording():.1f} ms", "")
    server = Server("--workers", "1", "--access-log-share", "0")
    try:
        server.await_ready()
        speeds, shares = telling(server)
    finally:
        server.stop()
    for what, found in (("requests a second, with over without", speeds), ("share of a processor", shares)):
        row = f"{statistics.median(found):.3f}", f"{min(found):.3f} to {max(found):.3f}"
        table.add_row(f"{LISTENERS} listeners: {what}", *row)
    Console(width=118).print(table)


if __name__ == "__main__":
    main()
