"""Traces: a caller's traceparent goes into log and answer; with OpenTelemetry configured, each request has spans."""

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import SettingsError
from service.headers import header_of
from service.logs import request_state
from service.settings import Settings

logger = logging.getLogger(__name__)

HEX_DIGITS = frozenset(b"0123456789abcdef")
NO_TRACE, NO_PARENT = b"0" * 32, b"0" * 16
ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
NEEDED = "opentelemetry.exporter.otlp.proto.http"


@dataclass(frozen=True, slots=True)
class TraceParent:
    text: str
    trace_id: str


def parse_traceparent(value: bytes) -> TraceParent | None:
    """A valid one of W3C Trace Context, level 1, of its version or a later one; else None."""
    version, *fields = value.split(b"-")
    if version == b"ff" or (version == b"00" and len(fields) != 3):
        return None
    if [len(field) for field in (version, *fields[:3])] != [2, 32, 16, 2]:
        return None
    trace_id, parent_id, flags = fields[:3]
    if not HEX_DIGITS.issuperset(version + trace_id + parent_id + flags):
        return None
    if trace_id == NO_TRACE or parent_id == NO_PARENT:
        return None
    known = b"-".join((b"00", trace_id, parent_id, flags))  # what a later version adds is not ours to pass on
    return TraceParent(known.decode("ascii"), trace_id.decode("ascii"))


class CallSpan(Protocol):
    """The span of a call over gRPC."""

    @property
    def traceparent(self) -> str:
        """To be answered."""

    def answered(self, code: int) -> None:
        """By gRPC's number."""


class Spans(Protocol):
    """Serves a request inside a span."""

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app; the span goes on from the request's traceparent, if it has one."""

    def call(
        self, method: str, headers: Mapping[bytes, bytes], state: dict[str, Any]
    ) -> AbstractContextManager[CallSpan]:
        """The same of a call over gRPC."""


class Tracing:
    """The outermost: ties log lines to the request, and the request to its trace."""

    def __init__(self, app: ASGIApp, spans: Spans | None):
        self._app, self._spans = app, spans

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        request_state.set(state)
        if self._spans is not None:
            return await self._spans.serve(self._app, scope, receive, send)
        header = header_of(scope, b"traceparent")
        given = parse_traceparent(header) if header else None
        if given is None:
            return await self._app(scope, receive, send)
        state["trace_id"] = given.trace_id
        await self._app(scope, receive, announcing(send, given.text))


def announcing(send: Send, traceparent: str) -> Send:
    async def send_with_traceparent(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message)["traceparent"] = traceparent
        await send(message)

    return send_with_traceparent


def spans_of(settings: Settings) -> Spans | None:
    """None unless traces are asked for, by setting or by OpenTelemetry's own variables. Raises SettingsError."""
    if settings.trace_endpoint is None and not _asked_for_by_environment():
        return None
    if not _installed():
        if settings.trace_endpoint is not None:
            raise SettingsError("trace_endpoint: needs OpenTelemetry; pip install 'lgm-guard[tracing]'")
        logger.warning("OTEL_ variables ask for traces; they need pip install 'lgm-guard[tracing]'")
        return None
    from service.spans import RequestSpans, exporting_tracer

    return RequestSpans(exporting_tracer(settings.trace_endpoint))


def _asked_for_by_environment() -> bool:
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none":
        return False
    return any(os.environ.get(name) for name in ENDPOINT_VARIABLES)


def _installed() -> bool:
    try:
        return find_spec(NEEDED) is not None
    except ModuleNotFoundError:
        return False
