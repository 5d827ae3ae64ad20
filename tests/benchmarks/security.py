"""What security, limits and traces cost a request, side by side in one run.

    python -m tests.benchmarks.security

Middleware: the time of a request through it to an app that does nothing, less that of the app alone. Connection:
requests one after the other over a socket, uvicorn's own protocol and ours in turns, client and server on one loop.
All is processor time, which other load on the machine changes little.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn
from opentelemetry.sdk.trace import TracerProvider
from rich.console import Console
from rich.table import Table
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from service.access import Access
from service.connections import Connection
from service.flight import Flight
from service.house import House
from service.key_file import KeyFile, append_key
from service.keys import Role, make_key
from service.limits import Limits
from service.rate_limit import TokenBuckets
from service.runtime import Runtime
from service.security import Security
from service.settings import load_settings
from service.spans import RequestSpans
from service.tracing import Tracing
from service.turns import Turns
from tests.service.test_keys import key_of

ROUNDS, REQUESTS = 30, 2_000
TRACEPARENT = (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01")
HEADERS = [
    (b"host", b"127.0.0.1:8000"),
    (b"user-agent", b"python-httpx/0.28.1"),
    (b"accept", b"*/*"),
    (b"accept-encoding", b"gzip, deflate"),
    (b"content-type", b"image/png"),
    (b"content-length", b"300"),
]
GET = b"GET / HTTP/1.1\r\n" + b"".join(name + b": " + value + b"\r\n" for name, value in HEADERS[:4]) + b"\r\n"


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


async def receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Message) -> None:
    """Takes what is answered."""


def stacks(folder: Path) -> dict[str, tuple[ASGIApp, list[tuple[bytes, bytes]]]]:
    """What is compared: an app and the headers of its requests."""
    runtime, key = Runtime(settings=load_settings()), make_key()
    append_key(folder / "keys.toml", key_of(key, role=Role.PREDICT))
    keys, no_keys = Access(KeyFile(folder / "keys.toml")), Access(None)
    flight = Flight(max_requests=1024, max_requests_per_caller=0, max_bytes=2**29)
    buckets = TokenBuckets(per_second=1e6, burst=10**6)
    authorization = (b"authorization", f"Bearer {key}".encode())

    def stack(access: Access, limiter: TokenBuckets | None, spans: RequestSpans | None) -> ASGIApp:
        return Tracing(Security(Limits(answer, flight, runtime.oversight, limiter, runtime), access, runtime), spans)

    tracer = TracerProvider().get_tracer("benchmark")
    return {
        "the app alone": (answer, HEADERS),
        "no keys": (stack(no_keys, None, None), HEADERS),
        "keys": (stack(keys, None, None), [*HEADERS, authorization]),
        "keys, rate limit": (stack(keys, buckets, None), [*HEADERS, authorization]),
        "keys, a caller's traceparent": (stack(keys, None, None), [*HEADERS, authorization, TRACEPARENT]),
        "keys, OpenTelemetry spans": (stack(keys, None, RequestSpans(tracer)), [*HEADERS, authorization]),
    }


async def seconds_per_request(app: ASGIApp, headers: list[tuple[bytes, bytes]]) -> float:
    started = time.process_time()
    for _ in range(REQUESTS):
        scope = {"type": "http", "method": "POST", "path": "/v1/predict", "headers": headers, "client": ("::1", 1)}
        await app({**scope, "state": {}}, receive, send)
    return (time.process_time() - started) / REQUESTS


async def measure_middleware(console: Console) -> None:
    with tempfile.TemporaryDirectory() as folder:
        compared = stacks(Path(folder))
        seconds: dict[str, list[float]] = {name: [] for name in compared}
        for _ in range(ROUNDS):
            for name, (app, headers) in compared.items():
                seconds[name].append(await seconds_per_request(app, headers))
    alone = statistics.median(seconds["the app alone"])
    table = Table("middleware", "microseconds a request", "more than the app alone")
    for name, measured in seconds.items():
        median = statistics.median(measured)
        table.add_row(name, f"{median * 1e6:.2f}", f"{(median - alone) * 1e6:.2f}")
    console.print(table)


async def measure_connections(console: Console) -> None:
    house = House(
        max_connections=1000,
        max_head_bytes=32768,
        head_timeout_seconds=10,
        body_timeout_seconds=31,
        turns=Turns(),
        has_room=lambda: True,
        refusal=lambda method, target, given_id: None,
        refuses_lately=lambda: False,
        on_refusal=lambda code: None,
    )
    config = uvicorn.Config(answer, log_config=None, lifespan="off")
    config.load()
    protocols: dict[str, Callable[..., asyncio.Protocol]] = {
        "uvicorn's": HttpToolsProtocol,
        "ours": partial(Connection, house=house),
    }
    seconds: dict[str, list[float]] = {name: [] for name in protocols}
    for _ in range(ROUNDS):
        for name, protocol in protocols.items():
            seconds[name].append(await _over_a_socket(partial(protocol, config, ServerState(), {}, None)))
    ratio = statistics.median(own / base for own, base in zip(seconds["ours"], seconds["uvicorn's"], strict=True))
    table = Table("protocol", "microseconds a request", "ratio")
    for name, measured in seconds.items():
        shown = f"{ratio:.3f}" if name == "ours" else ""
        table.add_row(name, f"{statistics.median(measured) * 1e6:.1f}", shown)
    console.print(table)


async def _over_a_socket(protocol: Callable[[], asyncio.Protocol]) -> float:
    server = await asyncio.get_running_loop().create_server(protocol, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
    started = time.process_time()
    for _ in range(REQUESTS):
        writer.write(GET)
        await reader.readuntil(b"\r\n\r\nok")
    seconds = (time.process_time() - started) / REQUESTS
    writer.close()
    server.close()
    return seconds


async def main() -> None:
    console = Console(width=110)
    console.print(f"medians of {ROUNDS} rounds of {REQUESTS:,} requests", highlight=False)
    await measure_middleware(console)
    await measure_connections(console)


if __name__ == "__main__":
    import uvloop

    uvloop.run(main())
