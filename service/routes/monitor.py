"""GET /v1/monitor, and the same once a second as a stream."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.types import Receive, Scope, Send

from service.access import Access
from service.disconnects import hung_up
from service.errors import ForbiddenError, UnauthenticatedError
from service.monitoring.snapshot import Snapshot
from service.routes.context import runtime_of
from service.schemas import Problem
from service.security import admit

MEDIA_TYPE = "text/event-stream"
SLOW_SECONDS = 10.0
STREAM: dict[str, Any] = {
    "response_class": Response,
    "responses": {
        200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}, "description": "Events named snapshot"},
        503: {"model": Problem},
    },
}

router = APIRouter(prefix="/v1/monitor", tags=["monitoring"])


class EventStream(Response):
    """Sends events as they come, until the caller has gone or its key has; who is slow over an event gets no more."""

    media_type = MEDIA_TYPE

    def __init__(self, events: AsyncIterator[bytes], access: Access):
        super().__init__(headers={"x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._access = events, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        gone = hung_up(receive)
        try:
            async for event in self._events:
                if gone():
                    return
                admit(self._access, scope)
                async with asyncio.timeout(SLOW_SECONDS):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
        except (TimeoutError, UnauthenticatedError, ForbiddenError):
            pass  # who goes on reading nothing is ended by the connection's own watch
        finally:
            await self._events.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.body", "body": b""})


@router.get("", summary="How the traffic is, and whether it is normal", response_model=Snapshot)
async def monitor(request: Request) -> Response:
    """Of the last hour; at most a second old."""
    return Response(await runtime_of(request).pulse.latest(), media_type="application/json")


@router.get("/stream", summary="The same, once a second", **STREAM)
async def stream(request: Request) -> Response:
    """Server-sent events named snapshot, the first at once. Who reads too slowly misses some, or is cut off."""
    runtime = runtime_of(request)
    runtime.pulse.check_room()
    return EventStream(runtime.pulse.listen(), runtime.access)
