"""OpenTelemetry spans of a request; imported only where traces are asked for (pip install 'lgm-guard[tracing]')."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import (
    Span,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    format_trace_id,
    set_span_in_context,
    use_span,
)
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.recording import recorder
from service.tracing import announcing

PROPAGATOR = TraceContextTextMapPropagator()
CARRIED = (b"traceparent", b"tracestate")
SERVER_FAULTS = frozenset({2, 4, 12, 13, 14, 15})  # of gRPC's codes; the others are the caller's
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def exporting_tracer(endpoint: str | None) -> Tracer:
    """Spans go to the endpoint, in batches from a thread with a bounded queue; None leaves it to OTEL_ variables."""
    provider = TracerProvider(resource=resource())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)))
    return provider.get_tracer("lgm-guard", version("lgm-guard"))


def resource() -> Resource:
    """This service, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES say otherwise."""
    default = Resource.create({"service.name": "lgm-guard", "service.version": version("lgm-guard")})
    return default.merge(OTELResourceDetector().detect())


class RequestSpans:
    def __init__(self, tracer: Tracer):
        self._tracer = tracer

    async def serve(self, app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        method = scope["method"] if scope["method"] in METHODS else "_OTHER"
        attributes = {"http.request.method": method, "url.scheme": scope.get("scheme", "http")}
        with self._opened(method, dict(scope["headers"]), scope["state"], attributes) as (span, traceparent):
            try:
                await app(scope, receive, _watching(span, announcing(send, traceparent)))
            finally:
                _name_route(span, scope)

    @contextmanager
    def call(self, method: str, headers: Mapping[bytes, bytes], state: dict[str, Any]) -> Iterator["RequestSpan"]:
        """A call over gRPC; method is the service's and its own name, apart by a slash."""
        service, _, name = method.partition("/")
        attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        with self._opened(method, headers, state, attributes) as (span, traceparent):
            yield RequestSpan(traceparent, span)

    @contextmanager
    def _opened(
        self, name: str, headers: Mapping[bytes, bytes], state: dict[str, Any], attributes: Mapping[str, str]
    ) -> Iterator[tuple[Span, str]]:
        """The span of a request with these headers, and its own traceparent."""
        given = {name.decode(): headers[name].decode("latin-1") for name in CARRIED if name in headers}
        context = PROPAGATOR.extract(given, Context())
        span = self._tracer.start_span(name, context=context, kind=SpanKind.SERVER, attributes=dict(attributes))
        carrier: dict[str, str] = {}
        PROPAGATOR.inject(carrier, set_span_in_context(span, Context()))
        state["trace_id"] = format_trace_id(span.get_span_context().trace_id)
        recorder.set(_Recorder(self._tracer, span).record if span.is_recording() else None)
        try:
            with use_span(span, record_exception=False, set_status_on_exception=False):
                yield span, carrier["traceparent"]
        finally:
            _identify(span, state)
            span.end()


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """The span of a call over gRPC."""

    traceparent: str
    span: Span

    def answered(self, code: int) -> None:
        self.span.set_attribute("rpc.grpc.status_code", code)
        if code in SERVER_FAULTS:
            self.span.set_status(Status(StatusCode.ERROR))


class _Recorder:
    """Makes spans of monotonic times, below the request's."""

    def __init__(self, tracer: Tracer, parent: Span):
        self._tracer, self._context = tracer, set_span_in_context(parent, Context())
        self._offset = time.time_ns() - time.monotonic_ns()

    def record(self, name: str, started: float, ended: float) -> None:
        span = self._tracer.start_span(name, context=self._context, start_time=self._epoch_ns(started))
        span.end(self._epoch_ns(ended))

    def _epoch_ns(self, monotonic: float) -> int:
        return int(monotonic * 1e9) + self._offset


def _watching(span: Span, send: Send) -> Send:
    async def watching_send(message: Message) -> None:
        if message["type"] == "http.response.start":
            span.set_attribute("http.response.status_code", message["status"])
            if message["status"] >= 500:
                span.set_status(Status(StatusCode.ERROR))
        await send(message)

    return watching_send


def _name_route(span: Span, scope: Scope) -> None:
    """Under the route's template, never the path."""
    route = getattr(scope.get("route"), "path", None)
    if route is not None:
        span.update_name(f"{scope['method']} {route}")
        span.set_attribute("http.route", route)


def _identify(span: Span, state: Mapping[str, Any]) -> None:
    """The request's identities, never a key."""
    for name in ("request_id", "key", "num_images"):
        if name in state:
            span.set_attribute(f"lgm.{name}", state[name])
