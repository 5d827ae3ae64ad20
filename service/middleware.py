"""Pure ASGI: the request's id, its time and log line, security headers, the body's limit."""

import logging
import re
import time
import uuid
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, FieldFault
from service.problems import CLIENT_CLOSED_REQUEST, internal_error
from service.runtime import Runtime

logger = logging.getLogger("service.access")
failures = logging.getLogger("service.failures")

SANE_ID = re.compile(r"(?!lgm_)[A-Za-z0-9._-]{1,64}")  # never an API key: ids are logged
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}
NO_CONTENT_POLICY = "default-src 'none'; frame-ancestors 'none'"
STRICT_TRANSPORT = "max-age=31536000"


class RequestIdentity:
    """Gives each request an id (the caller's where it is sane) and each answer its headers."""

    def __init__(self, app: ASGIApp, runtime: Runtime):
        self._app, self._runtime = app, runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if SANE_ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._add_headers(MutableHeaders(scope=message), scope.get("scheme"), request_id)
            await send(message)

        await self._app(scope, receive, send_with_headers)

    def _add_headers(self, headers: MutableHeaders, scheme: str | None, request_id: str) -> None:
        headers["x-request-id"] = request_id
        headers.update(SECURITY_HEADERS)
        headers.setdefault("content-security-policy", NO_CONTENT_POLICY)
        if scheme == "https":
            headers["strict-transport-security"] = STRICT_TRANSPORT
        if self._runtime.draining:
            headers["connection"] = "close"


@dataclass(slots=True)
class _Outcome:
    status: int | None = None


class Observation:
    """Counts and times each request under its route's template, writes its log line, hides what failed."""

    def __init__(self, app: ASGIApp, runtime: Runtime):
        self._app, self._runtime = app, runtime

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

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "unmatched")
        self._runtime.metrics.requests.labels(route, str(status)).inc()
        self._runtime.metrics.request_duration.labels(route).observe(seconds)
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
        announced = Headers(scope=scope).get("content-length", "").lstrip("0")
        limit = str(self._max_bytes)
        return announced.isdecimal() and (len(announced), announced) > (len(limit), limit)

    def _too_large(self) -> BodyTooLargeError:
        return BodyTooLargeError(FieldFault("body", f"more than {self._max_bytes} bytes, the limit"))
