"""The busiest routes without the way through the framework: the same endpoints, found by one look-up.

FastAPI's routing, dependencies and exception layers cost more than all that such a request does here besides.
Whatever is not found exactly goes their way, and they know these routes too.
"""

from collections.abc import Awaitable, Callable, Sequence

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.requests import ClientDisconnect
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import AbandonedError, ServiceError
from service.problems import answer_error
from service.runtime import Runtime

Endpoint = Callable[[Request], Awaitable[Response]]


class FastRoutes:
    """For routes without parameters whose endpoint takes the request alone and gives a response."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute], runtime: Runtime):
        self._app, self._runtime = app, runtime
        self._routes = {
            (method, route.path): route
            for route in routes
            if isinstance(route, APIRoute)
            for method in route.methods or ()
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get((scope["method"], scope["path"])) if scope["type"] == "http" else None
        if route is None:
            return await self._app(scope, receive, send)
        scope["route"] = route
        response = await self._respond(route.endpoint, Request(scope, receive))
        await response(scope, receive, send)

    async def _respond(self, endpoint: Endpoint, request: Request) -> Response:
        try:
            return await endpoint(request)
        except ServiceError as error:
            return answer_error(request.scope, error, self._runtime)
        except ClientDisconnect:
            return answer_error(request.scope, AbandonedError("the caller has gone"), self._runtime)
