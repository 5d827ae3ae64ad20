"""What keeping costs, in microseconds of processor time: on the event loop, and on the thread that writes.

    python -m tests.benchmarks.quarantine

Processor time, so that others on the machine move the figures little; of writing, that of the threads that put files
too. Medians of rounds.
"""

import asyncio
import gc
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from service.judgements import Judgements
from service.metrics import Metrics
from service.quarantine.backlog import Backlog, Captured
from service.quarantine.capture import Capture
from service.quarantine.database import Database
from service.quarantine.keeping import keep
from service.quarantine.preparing import prepare
from service.quarantine.records import Why
from service.quarantine.store import Store

ROUNDS, CALLS = 15, 200
WRITES = 8
SHAPE = (1, 28, 28)
KINDS = (("unflagged", False, 0.0), ("unflagged, sampling", False, 1e-9), ("flagged", True, 0.0))
DETECTORS = ("likelihood", "layers", "residual")


@dataclass(frozen=True)
class Asked:
    """What of an engine is kept beside its judgements."""

    name: str = "mnist"
    version: str = "0" * 16
    labels: tuple[str, ...] = tuple("0123456789")
    false_alarm_rate: float = 0.01


@dataclass(frozen=True)
class Caller:
    name: str = "ci-1"


def judgements(count: int, *, flagged: bool) -> Judgements:
    ones = np.ones(count, np.float32)
    return Judgements(
        class_index=np.zeros(count, np.int64),
        probabilities=np.tile(ones[:, None] / 10, 10),
        log_likelihood=ones,
        p_value=ones / 100,
        flagged=np.full(count, flagged),
        detectors=DETECTORS,
        evidence_scores=np.tile(ones[:, None], len(DETECTORS)),
        evidence_p_values=np.tile(ones[:, None], len(DETECTORS)),
    )


def images(count: int, seed: int = 0) -> np.ndarray:
    levels = np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)
    return np.divide(levels, 255, dtype=np.float32)


async def on_the_loop(count: int, *, flagged: bool, share: float) -> float:
    """Microseconds a request of so many images, the turn that hands over included."""
    backlog = Backlog(capacity=10**9, max_bytes=10**12)
    capture = Capture(backlog, Metrics(), share=share)
    said, pixels, state = (
        judgements(count, flagged=flagged),
        images(count),
        {"request_id": "r", "principal": Caller()},
    )
    rounds = []
    for _ in range(ROUNDS):
        started = time.thread_time()
        for _ in range(CALLS):
            capture.offer(Asked(), pixels, said, state)  # type: ignore[arg-type]
        await asyncio.sleep(0)
        rounds.append((time.thread_time() - started) / CALLS * 1e6)
        while backlog.take(0) is not None:
            pass
    return statistics.median(rounds)


def on_the_writing_thread(count: int, folder: Path) -> float:
    """Microseconds an image, of so many in a transaction; each time other pixels."""
    database, store = Database(f"sqlite:///{folder}/{count}.sqlite"), Store(str(folder / str(count)))
    said, seed = judgements(count, flagged=True), iter(range(10**6))
    captured = Captured(
        images=images(count),
        judgements=said,
        drawn=np.zeros(count, np.bool_),
        model_name="mnist",
        model_version="0" * 16,
        labels=Asked.labels,
        false_alarm_rate=0.01,
        request_id="r",
        principal="ci-1",
        judged_at=datetime.now(UTC),
    )

    def write() -> None:
        taken = replace(captured, images=images(count, next(seed)))
        batch = list(prepare(taken, drawn_as=Why.SAMPLED, keeps_bytes=True, max_age=timedelta(days=30)))
        keep(database, store, batch)

    write()
    rounds = []
    for _ in range(WRITES):
        started = time.process_time()
        write()
        rounds.append((time.process_time() - started) / count * 1e6)
    database.close()
    return statistics.median(rounds)


def main() -> None:
    gc.disable()
    console = Console(width=120)
    table = Table("what", "microseconds")
    for count in (1, 64):
        for name, flagged, share in KINDS:
            found = asyncio.run(on_the_loop(count, flagged=flagged, share=share))
            table.add_row(f"a request of {count}, {name}, on the event loop", f"{found:.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 64):
            found = on_the_writing_thread(count, Path(folder))
            table.add_row(f"an image, {count} in a transaction, on the writing thread", f"{found:.0f}")
    console.print(table)


if __name__ == "__main__":
    main()
