"""What httpx has and does not offer: a limit to the whole of an answer, and which proxy requests go through."""

import math
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from ssl import SSLContext
from typing import Any

import httpcore
import httpx

PROXY = "lgm_guard_proxy"  # a request's extension
DEADLINE = ContextVar("deadline", default=math.inf)


@contextmanager
def until(deadline: float) -> Iterator[None]:
    """What this thread's sync client does on the network ends with httpx.TimeoutException at that monotonic time."""
    token = DEADLINE.set(deadline)
    try:
        yield
    finally:
        DEADLINE.reset(token)


def keep_deadlines(http: httpx.Client) -> None:
    """httpx would wait for each piece of an answer anew, and so for ever where it trickles."""
    for transport in (http._transport, *http._mounts.values()):
        if isinstance(transport, httpx.HTTPTransport):
            transport._pool._network_backend = _Backend(transport._pool._network_backend)


def by_proxy(request: httpx.Request) -> str:
    """For messages: a proxy may have said or lacked what the service seems to."""
    proxy = request.extensions.get(PROXY)
    return "" if proxy is None else f" through the proxy {proxy}"


def proxy_of(http: httpx.Client | httpx.AsyncClient) -> str | None:
    """The address, without its password, where the environment names one for the service."""
    pool = getattr(http._transport_for_url(http.base_url), "_pool", None)
    url = getattr(pool, "_proxy_url", None)
    return str(url.origin) if isinstance(url, httpcore.URL) else None


class _Backend(httpcore.NetworkBackend):
    def __init__(self, inner: httpcore.NetworkBackend):
        self._inner = inner

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.connect_tcp(host, port, _within(timeout), local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    PIECE = 65_536  # one write may wait several times

    def __init__(self, inner: httpcore.NetworkStream):
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, _within(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), self.PIECE):
            self._inner.write(buffer[start : start + self.PIECE], _within(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _within(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


def _within(timeout: float | None) -> float:
    left = DEADLINE.get() - time.monotonic()
    if left <= 0:
        raise httpcore.TimeoutException("the deadline is over")
    return left if timeout is None else min(timeout, left)
