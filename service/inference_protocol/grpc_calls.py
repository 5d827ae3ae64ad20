"""A call over gRPC: who makes it, and how it ends."""

from typing import Any
from urllib.parse import unquote

import grpc

from service.access import client_network, metadata_headers
from service.errors import ServiceError
from service.headers import request_id_of
from service.problems import STATUSES
from service.rate_limit import Allowance, RateLimiter

# From the statuses of problems.STATUSES, the one table of errors.
CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    422: grpc.StatusCode.INVALID_ARGUMENT,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    500: grpc.StatusCode.INTERNAL,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
COME_BACK = (429, 503)


class Call:
    """What is known of a call while it is served. `state` is what HTTP keeps in the scope's state."""

    def __init__(self, context: Any):
        self._context = context
        self.headers = metadata_headers(context.invocation_metadata())
        self.request_id = request_id_of(self.headers.get(b"x-request-id", b"")).decode()
        self.state: dict[str, Any] = {"request_id": self.request_id}
        self.trailing = {"x-request-id": self.request_id}
        self.code = grpc.StatusCode.CANCELLED  # until it is answered

    @property
    def client(self) -> str:
        """The network of whoever calls; gRPC writes ipv4:10.0.0.1:5000, ipv6:%5B::1%5D:5000, unix:..."""
        kind, _, where = unquote(self._context.peer()).partition(":")
        host = where.rpartition(":")[0].strip("[]")
        return client_network((host, 0) if kind in ("ipv4", "ipv6") else None)

    def announce(self, limiter: RateLimiter, allowance: Allowance) -> None:
        self.trailing |= {"ratelimit-policy": limiter.policy, "ratelimit": allowance.told}

    def succeed(self) -> None:
        self.code = grpc.StatusCode.OK
        self._context.set_trailing_metadata(tuple(self.trailing.items()))

    async def refuse(self, error: ServiceError) -> None:
        """Clients with a retry policy heed the push-back."""
        status = STATUSES[type(error)]
        if status in COME_BACK:
            self.trailing["grpc-retry-pushback-ms"] = str(error.retry_after_seconds * 1000)
        await self._abort(CODES.get(status, grpc.StatusCode.UNKNOWN), str(error))

    async def fail(self) -> None:
        """Says nothing of what happened; the log does."""
        await self._abort(
            grpc.StatusCode.INTERNAL, f"internal error; the log has it under request_id {self.request_id}"
        )

    async def _abort(self, code: grpc.StatusCode, detail: str) -> None:
        self.code = code
        await self._context.abort(code, detail, tuple(self.trailing.items()))
