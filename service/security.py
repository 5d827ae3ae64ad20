"""The door of HTTP: no request passes to the app unless its key's role suffices."""

from starlette.types import ASGIApp, Receive, Scope, Send

from service.access import OPEN_PATHS, Access, authorise, client_network, least_role
from service.errors import ForbiddenError, ServiceError, UnauthenticatedError
from service.problems import of_service_error
from service.runtime import Runtime

CHALLENGE = {"www-authenticate": 'Bearer realm="lgm-guard"'}
POLICY_VIOLATION = 1008


def admit(access: Access, scope: Scope) -> None:
    """Name the principal in the scope's state. Raises UnauthenticatedError, ForbiddenError."""
    headers, method = dict(scope["headers"]), scope.get("method", "CONNECT")  # a WebSocket has none
    state = scope.setdefault("state", {})
    principal = access.authenticate(headers, client_network(scope.get("client")))
    if access.anonymous:
        access.check_page(method, headers)
    else:
        state["key"] = principal.name
    authorise(principal, least_role(method, scope["path"]))
    state["principal"] = principal


class Security:
    """Lets a request pass to the app when its key's role suffices, with the principal in the scope's state."""

    def __init__(self, app: ASGIApp, access: Access, runtime: Runtime):
        self._app, self._access, self._runtime = app, access, runtime

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS:
            return await self._app(scope, receive, send)
        try:
            admit(self._access, scope)
        except (UnauthenticatedError, ForbiddenError) as error:
            return await self._refuse(scope, receive, send, error)
        await self._app(scope, receive, send)

    async def _refuse(self, scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
        self._runtime.metrics.rejected.labels(error.code).inc()
        if scope["type"] == "websocket":
            return await send({"type": "websocket.close", "code": POLICY_VIOLATION})
        response = of_service_error(scope, error)
        if isinstance(error, UnauthenticatedError):
            response.headers.update(CHALLENGE)
        await response(scope, receive, send)
