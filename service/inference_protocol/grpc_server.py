"""The protocol's gRPC server: on the HTTP server's event loop, over the same engines."""

import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from service.errors import ServiceError, SettingsError
from service.inference_protocol import messages
from service.inference_protocol.grpc_messages import parse
from service.inference_protocol.grpc_methods import METHODS
from service.middleware import SANE_ID
from service.problems import STATUSES, count
from service.runtime import Runtime

logger = logging.getLogger(__name__)
access = logging.getLogger("service.access")
failures = logging.getLogger("service.failures")

# From the statuses of problems.STATUSES, the one table of errors.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


async def listen(runtime: Runtime, *, interceptors: Sequence[Any] = ()) -> tuple[Any, int]:
    """A started grpc.aio.Server at the settings' host and grpc_port, and its port.

    Interceptors see each call's metadata first: the place to check who calls.

    Raises SettingsError where the port cannot be had.
    """
    settings = runtime.settings
    # Without the second option two servers could share a port unknowingly.
    options = [("grpc.max_receive_message_length", settings.max_body_bytes), ("grpc.so_reuseport", 0)]
    server = grpc.aio.server(interceptors=interceptors, options=options)
    server.add_generic_rpc_handlers((_handlers(runtime),))
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    try:
        port = server.add_insecure_port(f"{host}:{settings.grpc_port}")
    except RuntimeError:
        raise SettingsError(f"cannot listen on {host}:{settings.grpc_port} for gRPC (grpc_port)") from None
    await server.start()
    logger.info("listening for gRPC on %s:%d", host, port)
    return server, port


def _handlers(runtime: Runtime) -> Any:
    # Without deserializers, so that a broken message is the caller's fault and not an internal error.
    return grpc.method_handlers_generic_handler(
        messages.SERVICE.full_name,
        {
            name: grpc.unary_unary_rpc_method_handler(Method(runtime, name, answer).call)
            for name, answer in METHODS.items()
        },
    )


class Method:
    """One method: its errors become codes, its calls are counted, timed and logged."""

    def __init__(self, runtime: Runtime, name: str, answer: Callable[[Runtime, Any], Awaitable[Any]]):
        self._runtime, self._name, self._answer = runtime, name, answer
        self._route = f"grpc/{name}"

    async def call(self, data: bytes, context: Any) -> Any:
        started, code = time.monotonic(), grpc.StatusCode.CANCELLED
        request_id = _request_id(context)
        context.set_trailing_metadata([("x-request-id", request_id)])
        try:
            response = await self._answer(self._runtime, parse(messages.REQUESTS[self._name], data))
            answer = response.SerializeToString()
            code = grpc.StatusCode.OK
            return answer
        except ServiceError as error:
            count(self._runtime, error)
            code = CODES.get(STATUSES[type(error)], grpc.StatusCode.UNKNOWN)
            await context.abort(code, str(error), _trailing_metadata(code, request_id, error))
        except Exception:
            failures.exception("request failed", extra={"request_id": request_id})
            code = grpc.StatusCode.INTERNAL
            await context.abort(code, f"internal error; the log has it under request_id {request_id}")
        finally:
            self._record(code, time.monotonic() - started, request_id)

    def _record(self, code: grpc.StatusCode, seconds: float, request_id: str) -> None:
        self._runtime.metrics.request_answered(self._route, code.name, seconds)
        access.info(
            "%s %s %.1f ms",
            self._route,
            code.name,
            seconds * 1000,
            extra={
                "request_id": request_id,
                "method": "gRPC",
                "route": self._route,
                "status": code.name,
                "duration_seconds": round(seconds, 6),
            },
        )


def _request_id(context: Any) -> str:
    given = str(next((value for key, value in context.invocation_metadata() or () if key == "x-request-id"), ""))
    return given if SANE_ID.fullmatch(given.encode()) else uuid.uuid4().hex


def _trailing_metadata(code: grpc.StatusCode, request_id: str, error: ServiceError) -> tuple[tuple[str, str], ...]:
    """Clients with a retry policy heed the push-back."""
    pushback = ("grpc-retry-pushback-ms", str(error.retry_after_seconds * 1000))
    return (("x-request-id", request_id), *([pushback] if code is grpc.StatusCode.UNAVAILABLE else []))
