"""What uvicorn is told about connections, from the settings."""

import resource
from functools import partial
from typing import Any

from service.connections import Connection
from service.errors import SettingsError
from service.house import House
from service.runtime import Runtime
from service.shedding import Shedding
from service.turns import Turns

OTHER_FILES = 128  # the bundle, the log, pipes to workers, the listening sockets


def transport_options(runtime: Runtime, *, over_tls: bool) -> dict[str, Any]:
    """Arguments of uvicorn.Config. Raises SettingsError."""
    settings, metrics = runtime.settings, runtime.metrics
    _allow_open_files(settings.max_connections + OTHER_FILES)
    turns = Turns()
    shedding = Shedding(runtime, turns, over_tls=over_tls)
    house = House(
        max_connections=settings.max_connections,
        max_head_bytes=settings.max_head_bytes,
        head_timeout_seconds=settings.head_timeout_seconds,
        # A little more than the app gives, whose answer says what was wrong.
        body_timeout_seconds=settings.request_timeout_seconds + 1,
        turns=turns,
        refusal=shedding.refusal,
        has_room=shedding.has_room,
        refuses_lately=shedding.refuses_lately,
        on_refusal=lambda code: metrics.rejected.labels(code).inc(),
    )
    return {"http": partial(Connection, house=house)}


def _allow_open_files(number: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < number:
        raise SettingsError(f"max_connections: needs {number} open files; this process may have {hard} (ulimit -Hn)")
    if soft != resource.RLIM_INFINITY and soft < number:
        resource.setrlimit(resource.RLIMIT_NOFILE, (number, hard))
