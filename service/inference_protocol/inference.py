"""One inference of the protocol, whatever brought it: decode within the limits, judge within the time."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from service.engine import Engine
from service.errors import DeadlineError, NotReadyError
from service.inference_protocol.outputs import withhold_flagged
from service.judgements import Floats, Judgements
from service.runtime import Runtime
from service.settings import Settings


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


async def judge(
    engine: Engine, decode: Callable[[], Inference], settings: Settings, *, cheap: bool
) -> tuple[Inference, Judgements]:
    """Decode and judge. What is cheap to decode is not worth the way to another thread and back.

    Raises what decode raises, DeadlineError, OverloadedError, NotReadyError, InferenceError.
    """
    seconds = settings.request_timeout_seconds
    started = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(started + seconds) as deadline:
            inference = decode() if cheap else await engine.prepare(decode)
            if inference.timeout_seconds is not None:
                seconds = min(seconds, inference.timeout_seconds)
                deadline.reschedule(started + seconds)
            judgements = await engine.screen(inference.images)
    except TimeoutError:
        raise DeadlineError(f"no answer within {seconds:g} s, the limit") from None
    return inference, withhold_flagged(judgements) if settings.policy == "withhold" else judgements
