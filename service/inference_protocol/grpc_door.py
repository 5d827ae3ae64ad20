"""What every call over gRPC passes: the door and the limits of HTTP, then its method; log, metrics and trace."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from service.access import authorise
from service.errors import FieldFault, MalformedBodyError, RateLimitedError, ServiceError, SlowBodyError
from service.inference_protocol import messages
from service.inference_protocol.grpc_calls import Call
from service.inference_protocol.grpc_messages import parse
from service.keys import Role
from service.logs import request_state
from service.problems import count
from service.runtime import Runtime
from service.tracing import parse_traceparent

access = logging.getLogger("service.access")
failures = logging.getLogger("service.failures")

OPEN_METHODS = frozenset({"ServerLive", "ServerReady"})  # the probes
Answer = Callable[[Runtime, Any, Call], Awaitable[Any]]


class Method:
    """One method. Whoever calls passes the door and the limits before the message is read."""

    def __init__(self, runtime: Runtime, name: str, answer: Answer):
        self._runtime, self._name, self._answer = runtime, name, answer
        self._route = f"grpc/{name}"

    async def call(self, received: AsyncIterator[bytes], context: Any) -> Any:
        call = Call(context)
        request_state.set(call.state)
        spans = self._runtime.spans
        if spans is None:
            self._follow(call)
            return await self._serve(received, call)
        with spans.call(f"{messages.SERVICE.full_name}/{self._name}", call.headers, call.state) as span:
            call.trailing["traceparent"] = span.traceparent
            try:
                return await self._serve(received, call)
            finally:
                span.answered(call.code.value[0])

    async def _serve(self, received: AsyncIterator[bytes], call: Call) -> Any:
        started = time.monotonic()
        try:
            answer = await self._admit(received, call)
            call.succeed()
            return answer
        except ServiceError as error:
            count(self._runtime, error)
            await call.refuse(error)
        except Exception:
            failures.exception("request failed", extra={"request_id": call.request_id})
            await call.fail()
        finally:
            self._record(call, time.monotonic() - started)

    def _follow(self, call: Call) -> None:
        """Without spans a caller's trace is named in the log and in the answer all the same."""
        given = parse_traceparent(call.headers.get(b"traceparent", b""))
        if given is not None:
            call.state["trace_id"] = given.trace_id
            call.trailing["traceparent"] = given.text

    async def _admit(self, received: AsyncIterator[bytes], call: Call) -> bytes:
        if self._name in OPEN_METHODS:
            return await self._respond(await self._read(received), call)
        caller = self._authenticate(call)
        flight, num_bytes = self._runtime.flight, 0
        flight.enter(caller)
        try:
            await self._take(caller, call)
            data = await self._read(received)
            num_bytes = len(data)
            flight.hold(num_bytes)
            return await self._charged(data, caller, call)
        finally:
            flight.leave(caller, num_bytes)

    def _authenticate(self, call: Call) -> str:
        """The caller's name. Raises UnauthenticatedError, ForbiddenError."""
        door = self._runtime.access
        principal = door.authenticate(call.headers, call.client)
        if not door.anonymous:
            call.state["key"] = principal.name
        authorise(principal, Role.PREDICT)
        call.state["principal"] = principal
        return principal.name

    async def _take(self, caller: str, call: Call) -> None:
        """Raises RateLimitedError."""
        limiter = self._runtime.limiter
        if limiter is None:
            return
        allowance = await limiter.take(caller)
        call.announce(limiter, allowance)
        if not allowance.granted:
            raise RateLimitedError(allowance.retry_after_seconds)

    async def _charged(self, data: bytes, caller: str, call: Call) -> bytes:
        """Images are paid for whatever the answer is."""
        try:
            answer = await self._respond(data, call)
        except ServiceError:
            await self._charge(caller, call)
            raise
        await self._charge(caller, call)
        return answer

    async def _charge(self, caller: str, call: Call) -> None:
        limiter, further = self._runtime.limiter, call.state.get("num_images", 1) - 1
        if limiter is not None and further > 0:
            call.announce(limiter, await limiter.charge(caller, further))

    async def _read(self, received: AsyncIterator[bytes]) -> bytes:
        """Raises SlowBodyError, MalformedBodyError."""
        seconds = self._runtime.settings.request_timeout_seconds
        try:
            async with asyncio.timeout(seconds):
                async for data in received:
                    return data
        except TimeoutError:
            raise SlowBodyError(FieldFault("message", f"did not arrive within {seconds:g} s, the limit")) from None
        raise MalformedBodyError(FieldFault("message", "did not come"))

    async def _respond(self, data: bytes, call: Call) -> bytes:
        request = parse(messages.REQUESTS[self._name], data)
        response = await self._answer(self._runtime, request, call)
        answer: bytes = response.SerializeToString()
        return answer

    def _record(self, call: Call, seconds: float) -> None:
        self._runtime.request_answered(self._route, call.code.name, seconds)
        access.info(
            "%s %s %.1f ms",
            self._route,
            call.code.name,
            seconds * 1000,
            extra={
                "request_id": call.request_id,
                "method": "gRPC",
                "route": self._route,
                "status": call.code.name,
                "duration_seconds": round(seconds, 6),
            },
        )
