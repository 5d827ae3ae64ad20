"""Passes what is asked below /dashboard on to the page's process: HTTP and WebSockets, before the service's own door.

The page has a door of its own, a login. Here only what never differs is looked at: that a page from elsewhere has no
say, and how much may come.
"""

import asyncio
from contextlib import suppress
from pathlib import Path

import httpx
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send
from websockets.asyncio.client import ClientConnection, unix_connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from service.access import SAFE_METHODS
from service.dashboard.options import PREFIX
from service.dashboard.parent import Dashboard
from service.errors import NotReadyError, OverloadedError, ServiceError
from service.forms import read_body
from service.middleware import BodyLimit
from service.problems import STATUSES, answer_error
from service.runtime import Runtime

MOST_TABS = 256
MOST_REQUESTS = 64
MAX_BODY_BYTES = 8192  # of a login; files come over the WebSocket
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
TIMEOUT_SECONDS = 30.0
SERVICE_RESTART = 1012
HOP_BY_HOP = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"}
)
# The origin is looked at here, where the host is known that the browser spoke to.
NOT_PASSED_ON = HOP_BY_HOP | {b"authorization", b"x-api-key", b"forwarded", b"content-length", b"origin"}
Headers = list[tuple[bytes, bytes]]


class Route:
    """Names all that is below it in metrics and log."""

    path = PREFIX


class Forwarding:
    def __init__(self, app: ASGIApp, dashboard: Dashboard, runtime: Runtime):
        self._app, self._dashboard, self._runtime = app, dashboard, runtime
        self._http: httpx.AsyncHTTPTransport | None = None
        self._num_tabs = self._num_requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or not is_below(scope["path"]):
            return await self._app(scope, receive, send)
        scope["route"] = Route
        try:
            method, headers = scope.get("method", "CONNECT"), dict(scope["headers"])
            self._runtime.access.check_page(method, headers)
            if scope["type"] == "http":
                await BodyLimit(self._forward, MAX_BODY_BYTES)(scope, receive, send)
            else:
                await self._connect(scope, receive, send)
        except ServiceError as error:
            await self._refuse(scope, receive, send, error)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
        if scope["type"] == "websocket":
            self._runtime.metrics.rejected.labels(error.code).inc()
            refusal = Response(str(error), STATUSES[type(error)], media_type="text/plain")
            return await refusal(scope, receive, send)
        await answer_error(scope, error, self._runtime)(scope, receive, send)

    async def _forward(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Before it has a place: those who never finish would take them all.
        timeout = self._runtime.settings.request_timeout_seconds
        body = b"" if scope["method"] in SAFE_METHODS else await read_body(receive, timeout_seconds=timeout)
        if self._num_requests >= MOST_REQUESTS:
            raise OverloadedError(f"{MOST_REQUESTS} requests to the dashboard are in flight, the limit")
        self._num_requests += 1
        try:
            await self._exchange(scope, body, send)
        finally:
            self._num_requests -= 1

    async def _exchange(self, scope: Scope, body: bytes, send: Send) -> None:
        http = self._transport(self._dashboard.address(scope["app"]))
        request = httpx.Request(
            scope["method"],
            f"http://page{target(scope)}",
            headers=passed_on(scope),
            content=body,
            extensions={"timeout": httpx.Timeout(TIMEOUT_SECONDS).as_dict()},
        )
        try:
            response = await http.handle_async_request(request)
        except httpx.TransportError:
            raise NotReadyError("the dashboard is starting; come back in a moment") from None
        try:
            await _answer(response, send)
        finally:
            await response.aclose()

    def _transport(self, address: Path) -> httpx.AsyncHTTPTransport:
        """No client: that would keep the cookie of whoever logs in, and send it for everyone who has none."""
        if self._http is None:
            limits = httpx.Limits(max_connections=MOST_REQUESTS, max_keepalive_connections=8, keepalive_expiry=2)
            self._http = httpx.AsyncHTTPTransport(uds=str(address), limits=limits)
        return self._http

    async def _connect(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._num_tabs >= MOST_TABS:
            raise OverloadedError(f"{MOST_TABS} tabs are open, the limit")
        self._num_tabs += 1
        try:
            await self._bridge(scope, receive, send)
        finally:
            self._num_tabs -= 1

    async def _bridge(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            page = await self._reach_page(scope)
        except InvalidStatus as refused:
            answer = refused.response
            refusal = Response(bytes(answer.body), answer.status_code, media_type="text/plain")
            return await refusal(scope, receive, send)
        except (WebSocketException, OSError, EOFError):
            raise NotReadyError("the dashboard is starting; come back in a moment") from None
        async with page:
            with suppress(OSError):  # the browser has gone
                await send({"type": "websocket.accept"})
                await _bridge_until_one_ends(page, receive, send)

    async def _reach_page(self, scope: Scope) -> ClientConnection:
        """Raises InvalidStatus where the page refuses."""
        return await unix_connect(
            str(self._dashboard.address(scope["app"])),
            f"ws://page{target(scope)}",
            additional_headers=_text(passed_on(scope)),
            compression=None,
            max_size=None,
            ping_interval=None,  # socket.io has pings of its own
        )


async def _bridge_until_one_ends(page: ClientConnection, receive: Receive, send: Send) -> None:
    up, down = asyncio.create_task(_upwards(page, receive)), asyncio.create_task(_downwards(page, send))
    try:
        await asyncio.wait([up, down], return_when=asyncio.FIRST_COMPLETED)
        if not up.done():
            await send({"type": "websocket.close", "code": SERVICE_RESTART})
    finally:
        for task in (up, down):
            task.cancel()
        await asyncio.gather(up, down, return_exceptions=True)


async def _upwards(page: ClientConnection, receive: Receive) -> None:
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        data: str | bytes = message.get("text") or message.get("bytes") or b""
        try:
            await page.send(data)
        except ConnectionClosed:
            return


async def _downwards(page: ClientConnection, send: Send) -> None:
    async for message in page:
        kind = "text" if isinstance(message, str) else "bytes"
        await send({"type": "websocket.send", kind: message})


async def _answer(response: httpx.Response, send: Send) -> None:
    headers = [(name.lower(), value) for name, value in response.headers.raw]
    await send(
        {
            "type": "http.response.start",
            "status": response.status_code,
            "headers": [header for header in headers if header[0] not in HOP_BY_HOP | {b"date"}],
        }
    )
    async for chunk in response.aiter_raw():
        await send({"type": "http.response.body", "body": chunk, "more_body": True})
    await send({"type": "http.response.body", "body": b""})


def is_below(path: str) -> bool:
    return path.startswith(PREFIX) and path[len(PREFIX) : len(PREFIX) + 1] in ("", "/")


def target(scope: Scope) -> str:
    path: bytes = scope["raw_path"]
    query: bytes = scope["query_string"]
    return (path + b"?" + query if query else path).decode("latin-1")


def passed_on(scope: Scope) -> Headers:
    """The caller's headers but those that are between it and us, or that say who it is to others than the page.

    What says that to the page is of our own making.
    """
    given = [
        (name, value)
        for name, value in scope["headers"]
        if name not in NOT_PASSED_ON and not name.startswith((b"x-forwarded-", b"sec-websocket-"))
    ]
    scheme = b"https" if scope["scheme"] in ("https", "wss") else b"http"
    client = scope.get("client")
    address = [] if client is None else [(b"x-forwarded-for", client[0].encode("latin-1"))]
    return [*given, (b"x-forwarded-proto", scheme), *address]


def _text(headers: Headers) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers if name != b"host"]
