"""Pure ASGI: the request's id, its time and log line, security headers, the body's limit."""

import logging
import random
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from anyio import CancelScope
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, FieldFault
from service.headers import (
    CONTENT_POLICY,
    NO_CONTENT_POLICY,
    SECURITY_HEADERS,
    STRICT_TRANSPORT,
    Header,
    header_of,
    request_id_of,
)
from service.problems import CLIENT_CLOSED_REQUEST, internal_error
from service.runtime import Runtime

logger = logging.getLogger("service.access")
failures = logging.getLogger("service.failures")

OVERLOADED = 503


class RequestIdentity:
    """Gives each request an id (the caller's where it is sane) and each answer its headers."""

    def __init__(self, app: ASGIApp, runtime: Runtime):
        self._app, self._runtime = app, runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        request_id = request_id_of(header_of(scope, b"x-request-id"))
        scope.setdefault("state", {})["request_id"] = request_id.decode()

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = message.get("headers", ())
                message["headers"] = [*given, *self._further_headers(given, scope, request_id)]
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _further_headers(self, given: Iterable[Header], scope: Scope, request_id: bytes) -> list[Header]:
        headers = [(b"x-request-id", request_id), *SECURITY_HEADERS]
        if any(name == CONTENT_POLICY for name, _ in given):  # a page has its own, and may say what to keep
            named = {name for name, _ in given}
            headers = [header for header in headers if header[0] not in named]
        else:
            headers.append(NO_CONTENT_POLICY)
        if scope.get("scheme") == "https":
            headers.append(STRICT_TRANSPORT)
        if self._runtime.draining:
            headers.append((b"connection", b"close"))
        return headers


@dataclass(slots=True)
class _Outcome:
    status: int | None = None


class Observation:
    """Counts and times each request under its route's template, writes its log line, hides what failed."""

    def __init__(self, app: ASGIApp, runtime: Runtime, routes: Sequence[Route]):
        self._app, self._runtime, self._routes = app, runtime, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        started, outcome = time.monotonic(), _Outcome()

        async def watching_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                outcome.status = message["status"]
            await send(message)

        try:
            await self._answer(scope, receive, watching_send, outcome)
        finally:
            self._record(scope, outcome.status or CLIENT_CLOSED_REQUEST, time.monotonic() - started)

    async def _answer(self, scope: Scope, receive: Receive, send: Send, outcome: _Outcome) -> None:
        try:
            await self._app(scope, receive, send)
        except Exception:
            failures.exception("request failed", extra={"request_id": scope["state"]["request_id"]})
            if outcome.status is not None:  # half an answer is out: the connection must end
                raise
            await internal_error(scope)(scope, receive, send)

    def _name_route(self, scope: Scope) -> None:
        """Of what was refused before it came to its route: it counts there all the same."""
        path = scope["path"]
        scope["route"] = next((route for route in self._routes if route.path_regex.match(path)), None)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        if scope.get("route") is None:
            self._name_route(scope)
        route = getattr(scope["route"], "path", "unmatched")
        self._runtime.request_answered(route, status, seconds)
        if not self._worth_a_line(status):
            return
        logger.info(
            "%s %s %d %.1f ms",
            scope["method"],
            route,
            status,
            seconds * 1000,
            extra={
                "request_id": scope["state"]["request_id"],
                "method": scope["method"],
                "route": route,
                "status": status,
                "duration_seconds": round(seconds, 6),
            },
        )

    def _worth_a_line(self, status: int) -> bool:
        if status == OVERLOADED:
            return self._runtime.refusals.worth_a_line()
        return status >= 400 or random.random() < self._runtime.settings.access_log_share


class HeadAsGet:
    """HEAD is answered as GET would be, and ends with the head: a body may have no end."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            return await self._app(scope, receive, send)
        inner = {**scope, "method": "GET"}
        with CancelScope() as answering:

            async def send_head(message: Message) -> None:
                if message["type"] == "http.response.start":
                    await send(message)
                    await send({"type": "http.response.body", "body": b""})
                    answering.cancel()

            try:
                await self._app(inner, receive, send_head)
            finally:
                scope["route"] = inner.get("route")


class BodyLimit:
    """Raises BodyTooLargeError to whoever reads a body past the limit, whatever its head promised."""

    def __init__(self, app: ASGIApp, max_bytes: int):
        self._app, self._max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        count = self._max_bytes + 1 if self._announces_too_much(scope) else 0

        async def counting_receive() -> Message:
            nonlocal count
            if count > self._max_bytes:
                raise self._too_large()
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._max_bytes:
                raise self._too_large()
            return message

        await self._app(scope, counting_receive, send)

    def _announces_too_much(self, scope: Scope) -> bool:
        announced = header_of(scope, b"content-length").lstrip(b"0")
        limit = b"%d" % self._max_bytes
        return announced.isdigit() and (len(announced), announced) > (len(limit), limit)

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(FieldFault("body", f"more than {self._max_bytes} bytes, the limit"))
