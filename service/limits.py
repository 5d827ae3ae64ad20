"""The limits of HTTP: a place in flight, and a rate for each caller."""

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.access import OPEN_PATHS, Principal
from service.errors import OverloadedError, RateLimitedError, ServiceError, TooManyRequestsError
from service.flight import Flight
from service.keys import Role
from service.monitoring.traffic import is_prediction
from service.problems import answer_error
from service.rate_limit import Allowance, RateLimiter
from service.runtime import Runtime


class Limits:
    """Stands behind Security, which says who asks. A route that counts images tells so in state["num_images"].

    oversight: what reviewers and administrators are counted in, unless they have images judged.
    """

    def __init__(
        self, app: ASGIApp, flight: Flight, oversight: Flight, limiter: RateLimiter | None, runtime: Runtime
    ):
        self._app, self._flight, self._oversight = app, flight, oversight
        self._limiter, self._runtime = limiter, runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        principal: Principal = scope["state"]["principal"]
        caller, flight = principal.name, self._flight_of(principal, scope["path"])
        try:
            flight.enter(caller)
        except (OverloadedError, TooManyRequestsError) as error:
            return await self._refuse(scope, receive, send, error)
        held = _Held(flight, receive)
        try:
            await self._at_rate(caller, scope, held.receive, send)
        finally:
            flight.leave(caller, held.num_bytes)

    def _flight_of(self, principal: Principal, path: str) -> Flight:
        return self._flight if principal.role == Role.PREDICT or is_prediction(path) else self._oversight

    async def _at_rate(self, caller: str, scope: Scope, receive: Receive, send: Send) -> None:
        if self._limiter is None:
            return await self._app(scope, receive, send)
        allowance = await self._limiter.take(caller)
        announcing = _Announcing(send, scope, self._limiter, caller, allowance)
        if allowance.granted:
            return await self._app(scope, receive, announcing.send)
        await self._refuse(scope, receive, announcing.send, RateLimitedError(allowance.retry_after_seconds))

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
        await answer_error(scope, error, self._runtime)(scope, receive, send)


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
            headers["ratelimit"] = self._allowance.told
        await self._send(message)
