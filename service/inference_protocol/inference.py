"""One inference of the protocol, whatever brought it: decode within the limits, judge within the time."""

import time
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from service.engine import Engine
from service.errors import DeadlineError, NotReadyError
from service.inference_protocol.outputs import withhold_flagged
from service.judgements import Floats, Judgements
from service.rate_limit import paying_for_faults
from service.recording import recorded
from service.runtime import Runtime


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output of an answer, as bytes or as numbers."""

    name: str
    binary: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Inference:
    """A request that holds: its images, and what its answer is to have."""

    id: str | None
    images: Floats
    outputs: Sequence[RequestedOutput]
    timeout_seconds: float | None


def ready_engine(runtime: Runtime, name: str, version: str | None = None) -> Engine:
    """Raises UnknownModelError, and NotReadyError unless new traffic for it should be sent here."""
    engine = runtime.engine_for(name, version)
    runtime.check_ready()
    if not engine.alive:
        raise NotReadyError(f"the worker of {engine.name} {engine.version} has stopped")
    return engine


def _stays() -> bool:
    return False


async def judge(
    runtime: Runtime,
    engine: Engine,
    decode: Callable[[], Inference],
    *,
    state: MutableMapping[str, Any],
    deadline: float,
    cheap: bool,
    abandoned: Callable[[], bool] = _stays,
) -> tuple[Inference, Judgements]:
    """Decode and judge. What is cheap to decode is not worth the way to another thread and back.

    state: the request's, with its id and who sent it; is told how many images there are. deadline: in
    time.monotonic() seconds. abandoned: whether the caller has gone, asked before late work starts.
    Raises what decode raises, DeadlineError, OverloadedError, NotReadyError, InferenceError.
    """
    started = time.monotonic()
    with recorded("decode"), paying_for_faults(state):
        inference = decode() if cheap else await engine.prepare(partial(_decode_in_time, decode, deadline))
    state["num_images"] = len(inference.images)
    if inference.timeout_seconds is not None:
        deadline = min(deadline, started + inference.timeout_seconds)
    judgements = await engine.screen(inference.images, deadline, abandoned=abandoned)
    runtime.offer(engine, inference.images, judgements, state)
    return inference, withhold_flagged(judgements) if runtime.settings.policy == "withhold" else judgements


def _decode_in_time(decode: Callable[[], Inference], deadline: float) -> Inference:
    if time.monotonic() >= deadline:
        raise DeadlineError("no answer before the deadline")
    return decode()
