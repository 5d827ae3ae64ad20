"""One server at a time: start, await, check its answers, warm, measure, stop; all servers in turn, round by round."""

import http.client
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detectors import Screener
from model.image_set import to_unit
from tests.benchmarks.serving import wrk
from tests.benchmarks.serving.contenders import BATCH, Contender, Setting
from tests.benchmarks.serving.errors import WrongAnswerError
from tests.benchmarks.serving.forms import HEADER_LENGTH, Answer, Form, Said
from tests.benchmarks.serving.processes import MemoryWatch, ProcessorMeter, ServerProcess, Spent
from tests.benchmarks.serving.wrk import Load

CHECKED_REQUESTS = 16
WARM_CONNECTIONS = 32
LIKELIHOOD_TOLERANCE, P_VALUE_TOLERANCE = 1e-3, 5e-3


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """How much is measured."""

    connections: tuple[int, ...]
    batch_connections: tuple[int, ...]
    factors: tuple[float, ...]
    seconds: int
    rounds: int

    @property
    def warm_seconds(self) -> int:
        return min(2, self.seconds)

    @property
    def overload_seconds(self) -> int:
        """Long enough that the queue's filling is a small part of it."""
        return 3 * self.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One load on one server in one round: images a request, processor time, the greatest memory meanwhile."""

    round: int
    server: str
    form: str
    images: int
    connections: int
    load: Load
    spent: Spent
    peak_bytes: int

    @property
    def others_cores(self) -> float:
        return self.spent.others_cpu_seconds / self.spent.seconds


@dataclass(frozen=True, kw_only=True, slots=True)
class InProcess:
    """What the screener does without a server, and how many cores were taken from it meanwhile."""

    images_per_second: float
    others_cores: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """The screener in this process, what it says, and the images (n, c, h, w) uint8 that everybody is sent."""

    screener: Screener
    images: Tensor
    said: tuple[Said, ...]

    @classmethod
    def of(cls, screener: Screener, images: Tensor) -> "Reference":
        verdicts = screener.screen(to_unit(images))
        columns = (verdicts.class_index, verdicts.log_likelihood, verdicts.p_value)
        rows = zip(*(column.tolist() for column in columns), strict=True)
        return cls(screener=screener, images=images, said=tuple(Said(*row) for row in rows))

    def screen_in_process(self, *, seconds: float, threads: int) -> "InProcess":
        """In batches, with all threads; the images are float32 already."""
        torch.set_num_threads(threads)
        batches = [batch for batch in to_unit(self.images).split(BATCH) if len(batch) == BATCH]
        for batch in batches[:3]:
            self.screener.screen(batch)
        meter, started, done = ProcessorMeter(), time.perf_counter(), 0
        while (spent := time.perf_counter() - started) < seconds:
            self.screener.screen(batches[done % len(batches)])
            done += 1
        return InProcess(
            images_per_second=done * BATCH / spent, others_cores=meter.spent().others_cpu_seconds / spent
        )


def measure(
    contender: Contender,
    setting: Setting,
    reference: Reference,
    plan: Plan,
    *,
    number: int,
    then: Callable[[ServerProcess, Path], None],
) -> Iterator[Row]:
    """Every load of the plan on one fresh server; `then` is given it before it stops, with the single requests."""
    server = contender.launch(setting)
    try:
        server.await_ready(contender.ready, announced=contender.announced)
        single, batch = contender.single(setting), contender.batch(setting, server.port)
        files = _prepare(server, single, 1, reference, setting.folder)
        batches = _prepare(server, batch, BATCH, reference, setting.folder)
        wrk.run(server.url, files, connections=WARM_CONNECTIONS, seconds=plan.warm_seconds)
        for connections in plan.connections:
            found = _load(server, files, connections, plan.seconds)
            yield Row(round=number, server=contender.name, form=single.told, images=1, **found)
        for connections in plan.batch_connections:
            found = _load(server, batches, connections, plan.seconds)
            yield Row(round=number, server=contender.name, form=batch.told, images=BATCH, **found)
        then(server, files)
    finally:
        server.stop()


def _load(server: ServerProcess, requests: Path, connections: int, seconds: int) -> dict[str, Any]:
    meter = ProcessorMeter(server)
    with MemoryWatch(server) as memory:
        load = wrk.run(server.url, requests, connections=connections, seconds=seconds)
    return {
        "connections": connections,
        "load": load,
        "spent": meter.spent(generator_cpu_seconds=load.generator_cpu_seconds),
        "peak_bytes": memory.peak_bytes,
    }


def _prepare(server: ServerProcess, form: Form, size: int, reference: Reference, folder: Path) -> Path:
    """Write the requests for wrk, after the first of them were answered rightly. Raises WrongAnswerError."""
    bodies = form.bodies(reference.images, size=size)
    for position, body in enumerate(bodies[: max(1, CHECKED_REQUESTS // size)]):
        expected = reference.said[position * size : (position + 1) * size]
        found = form.decode(post(server.port, form, body))
        if not agree(found, expected):
            raise WrongAnswerError(f"{form.path} said {found[:2]}, the screener says {expected[:2]}")
    path = folder / f"requests-of-{size}"
    wrk.write_plan(path, form, bodies)
    return path


def agree(found: Sequence[Said], expected: Sequence[Said]) -> bool:
    """The same classes, likelihoods and p-values, to what another order of summation may change."""
    return len(found) == len(expected) and all(
        one.class_index == other.class_index
        and math.isclose(one.log_likelihood, other.log_likelihood, rel_tol=LIKELIHOOD_TOLERANCE)
        and math.isclose(one.p_value, other.p_value, abs_tol=P_VALUE_TOLERANCE)
        for one, other in zip(found, expected, strict=True)
    )


def post(port: int, form: Form, body: bytes) -> Answer:
    """One request. Raises WrongAnswerError unless it is answered with 200."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=wrk.ANSWER_TIMEOUT_SECONDS)
    try:
        connection.request("POST", form.path, body, form.headers)
        answer = connection.getresponse()
        content, json_bytes = answer.read(), answer.getheader(HEADER_LENGTH)
    finally:
        connection.close()
    if answer.status != 200:
        raise WrongAnswerError(f"{form.path} answered {answer.status}: {content[:500]!r}")
    return Answer(content, None if json_bytes is None else int(json_bytes))
