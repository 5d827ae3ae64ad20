"""Where the parts of a request's time go, for its trace. Costs one look at a context variable where there is none."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Record = Callable[[str, float, float], None]
recorder: ContextVar[Record | None] = ContextVar("recorder", default=None)


def is_recorded() -> bool:
    return recorder.get() is not None


def record(name: str, started: float, ended: float) -> None:
    """Add a span to the request's trace, if one is recorded. Times are of time.monotonic()."""
    recording = recorder.get()
    if recording is not None:
        recording(name, started, ended)


@contextmanager
def recorded(name: str) -> Iterator[None]:
    """A span from its begin to its end, also where that is an error."""
    started = time.monotonic()
    try:
        yield
    finally:
        record(name, started, time.monotonic())
