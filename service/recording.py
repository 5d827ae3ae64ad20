"""Where the parts of a request's time go, for its trace. Costs one look at a context variable where there is none."""

from collections.abc import Callable
from contextvars import ContextVar

Record = Callable[[str, float, float], None]
recorder: ContextVar[Record | None] = ContextVar("recorder", default=None)


def record(name: str, started: float, ended: float) -> None:
    """Add a span to the request's trace, if one is recorded. Times are of time.monotonic()."""
    recording = recorder.get()
    if recording is not None:
        recording(name, started, ended)
