"""How much may be in flight at once, and how fast each caller may send. Refusals are immediate."""

import math

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import OverloadedError, RateLimitedError, ServiceError, TooManyRequestsError
from service.problems import of_service_error
from service.rate_limit import Allowance, RateLimiter, TokenBuckets
from service.runtime import Runtime
from service.security import OPEN_PATHS
from service.settings import Settings

BUSY_RETRY_AFTER_SECONDS = 1.0


class Flight:
    """Counts requests in flight, of all and of each caller, and the bytes of bodies that they hold."""

    def __init__(self, *, max_requests: int, max_requests_per_caller: int, max_bytes: int):
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._max_requests_per_caller = max_requests_per_caller or max_requests
        self._by_caller: dict[str, int] = {}
        self.num_requests = 0
        self.num_bytes = 0

    def enter(self, caller: str) -> None:
        """Raises OverloadedError, TooManyRequestsError."""
        if self.num_requests >= self._max_requests:
            raise OverloadedError(f"{self.num_requests} requests are in flight, the limit")
        own = self._by_caller.get(caller, 0)
        if own >= self._max_requests_per_caller:
            raise TooManyRequestsError(f"{own} requests of this caller are in flight, the limit")
        self._by_caller[caller] = own + 1
        self.num_requests += 1

    def leave(self, caller: str, num_bytes: int) -> None:
        self.num_requests -= 1
        self.num_bytes -= num_bytes
        self._by_caller[caller] -= 1
        if not self._by_caller[caller]:
            del self._by_caller[caller]

    def hold(self, num_bytes: int) -> None:
        """Raises OverloadedError."""
        self.num_bytes += num_bytes
        if self.num_bytes > self._max_bytes:
            raise OverloadedError(f"the bodies in flight hold more than {self._max_bytes} bytes, the limit")


class Limits:
    """Stands behind Security, which says who asks. A route that counts images tells so in state["num_images"]."""

    def __init__(self, app: ASGIApp, flight: Flight, limiter: RateLimiter | None, runtime: Runtime):
        self._app, self._flight, self._limiter, self._runtime = app, flight, limiter, runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        caller = scope["state"]["principal"].name
        try:
            self._flight.enter(caller)
        except (OverloadedError, TooManyRequestsError) as error:
            return await self._refuse(scope, receive, send, error, BUSY_RETRY_AFTER_SECONDS)
        held = _Held(self._flight, receive)
        try:
            await self._at_rate(caller, scope, held.receive, send)
        finally:
            self._flight.leave(caller, held.num_bytes)

    async def _at_rate(self, caller: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self._limiter is None:
            return await self._app(scope, receive, send)
        allowance = await self._limiter.take(caller)
        announcing = _Announcing(send, scope, self._limiter, caller, allowance)
        if allowance.granted:
            return await self._app(scope, receive, announcing.send)
        error = RateLimitedError("this caller sends faster than it may; Retry-After says when to come back")
        await self._refuse(scope, receive, announcing.send, error, allowance.retry_after_seconds)

    async def _refuse(
        self, scope: Scope, receive: Receive, send: Send, error: ServiceError, retry_after_seconds: float
    ) -> None:
        self._runtime.metrics.rejected.labels(error.code).inc()
        response = of_service_error(scope, error)
        response.headers["retry-after"] = str(math.ceil(retry_after_seconds))
        await response(scope, receive, send)


class _Held:
    """Counts the body's bytes as held until the request ends."""

    def __init__(self, flight: Flight, receive: Receive):
        self._flight, self._receive = flight, receive
        self.num_bytes = 0

    async def receive(self) -> Message:
        message = await self._receive()
        num_bytes = len(message.get("body", b""))
        if num_bytes:
            self.num_bytes += num_bytes
            self._flight.hold(num_bytes)
        return message


class _Announcing:
    """Charges for the images that the answer is about, and tells the caller what it has left."""

    def __init__(self, send: Send, scope: Scope, limiter: RateLimiter, caller: str, allowance: Allowance):
        self._send, self._scope, self._limiter = send, scope, limiter
        self._caller, self._allowance = caller, allowance

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            further = self._scope["state"].get("num_images", 1) - 1
            if further > 0:
                self._allowance = await self._limiter.charge(self._caller, further)
            headers = MutableHeaders(scope=message)
            headers["ratelimit-policy"] = self._limiter.policy
            headers["ratelimit"] = _describe(self._allowance)
        await self._send(message)


def flight_of(settings: Settings) -> Flight:
    return Flight(
        max_requests=settings.max_in_flight,
        max_requests_per_caller=settings.max_in_flight_per_key,
        max_bytes=settings.max_held_bytes,
    )


def limiter_of(settings: Settings) -> RateLimiter | None:
    if not settings.rate_limit:
        return None
    return TokenBuckets(per_second=settings.rate_limit, burst=settings.rate_limit_burst)


def _describe(allowance: Allowance) -> str:
    return f'"images";r={allowance.remaining};t={math.ceil(allowance.full_after_seconds)}'
