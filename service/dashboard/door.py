"""Nobody gets past without a session, except to the login page and where the service itself asks for no key."""

import time
from http import HTTPStatus
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection, Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.addresses import is_local_name
from service.client.errors import ClientError, ProblemError
from service.dashboard.login import LOGIN, LOGOUT, STATIC, login_page, message_page
from service.dashboard.options import PREFIX, Options
from service.dashboard.sessions import COOKIE, KNOWN_SECONDS, LIFETIME_SECONDS, Session, Sessions
from service.dashboard.upstream import Identity, Service

POLICY_VIOLATION = 1008
MAX_FORM_BYTES = 4096
SAFE_METHODS = ("GET", "HEAD")
ELSEWHERE = "Origin is not Host: a page from elsewhere may change nothing here; a proxy in front must keep Host"
CLOSED = (
    "The service asks for no key, so this page shows itself on this machine alone, by localhost or an address; "
    "set API keys, or say --allow-anonymous."
)


class Door:
    """Whoever passes is in the scope's state, as `session`."""

    def __init__(self, app: ASGIApp, *, sessions: Sessions, service: Service, options: Options):
        self._app, self._sessions, self._service, self._options = app, sessions, service, options
        self._anonymous: Identity | None = None
        self._asked = -KNOWN_SECONDS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"].startswith(STATIC):
            return await self._app(scope, receive, send)
        connection = HTTPConnection(scope)
        if not _from_here(connection):
            return await _refuse(scope, receive, send, Response(ELSEWHERE, HTTPStatus.FORBIDDEN))
        if scope["type"] == "http" and scope["path"] in (LOGIN, LOGOUT):
            response = await self._log_in_or_out(Request(scope, receive))
            return await response(scope, receive, send)
        try:
            session = await self._session(connection)
        except ClientError as error:
            page = message_page("The service does not answer", str(error), status=HTTPStatus.SERVICE_UNAVAILABLE)
            return await _refuse(scope, receive, send, page)
        if session is None:
            return await _refuse(scope, receive, send, _to_login(scope))
        if session.identity.name is None and not self._is_open_to(connection):
            return await _refuse(scope, receive, send, message_page("Closed", CLOSED, status=HTTPStatus.FORBIDDEN))
        scope.setdefault("state", {})["session"] = session
        await self._app(scope, receive, send)

    def _is_open_to(self, connection: HTTPConnection) -> bool:
        """Where the service asks for no key. A browser may be led to this machine by somebody else's name."""
        host = connection.headers.get("host", "localhost").encode("latin-1")
        return self._options.allow_anonymous or (self._options.on_loopback and is_local_name(host))

    async def _session(self, connection: HTTPConnection) -> Session | None:
        for found in self._held_by(connection):
            if await self._sessions.confirm(found):
                return found
        identity = await self._without_key()
        if identity is None:
            return None
        address = None if connection.client is None else connection.client.host
        return Session(id="", key=None, identity=identity, opened=0, address=address)

    async def _without_key(self) -> Identity | None:
        """Whom the service takes callers without a key for; None where it wants one."""
        if time.monotonic() - self._asked > KNOWN_SECONDS:
            try:
                self._anonymous = await self._service.whoami(None)
            except ProblemError as error:
                if error.problem.status != HTTPStatus.UNAUTHORIZED:
                    raise
                self._anonymous = None
            self._asked = time.monotonic()
        return self._anonymous

    async def _log_in_or_out(self, request: Request) -> Response:
        if request.method == "POST":
            return await (self._log_in if request.url.path == LOGIN else self._log_out)(request)
        return login_page() if request.url.path == LOGIN else RedirectResponse(f"{PREFIX}/", HTTPStatus.SEE_OTHER)

    async def _log_in(self, request: Request) -> Response:
        key = await _key_of(request)
        if key is None:
            return login_page("That is no API key.", status=HTTPStatus.UNPROCESSABLE_ENTITY)
        try:
            identity = await self._service.whoami(key)
        except ProblemError as error:
            refused = error.problem.status == HTTPStatus.UNAUTHORIZED
            told = "This key is not valid, or no longer." if refused else error.problem.detail
            return login_page(told, status=error.problem.status)
        except ClientError as error:
            return login_page(f"The service does not answer: {error}", status=HTTPStatus.SERVICE_UNAVAILABLE)
        self._close(request)
        response = RedirectResponse(f"{PREFIX}/", HTTPStatus.SEE_OTHER)
        response.set_cookie(
            _cookie_of(request),
            self._sessions.open(key, identity),
            max_age=LIFETIME_SECONDS,
            path=PREFIX,
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    async def _log_out(self, request: Request) -> Response:
        self._close(request)
        response = RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER)
        response.delete_cookie(_cookie_of(request), path=PREFIX, httponly=True, samesite="strict")
        return response

    def _close(self, request: Request) -> None:
        for session in self._held_by(request):
            self._sessions.close(session)

    def _held_by(self, connection: HTTPConnection) -> list[Session]:
        """Whatever the cookie's port, which WebSockets passed on by the service do not tell: we know our tickets."""
        tickets = [value for name, value in connection.cookies.items() if name.startswith(COOKIE)]
        return [session for session in map(self._sessions.find, tickets) if session is not None]


def _cookie_of(request: Request) -> str:
    """Cookies ignore ports: without one in its name, the pages of one machine would write over each other's."""
    return f"{COOKIE}{request.url.port or (443 if request.url.scheme == 'https' else 80)}"


async def _key_of(request: Request) -> str | None:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_FORM_BYTES:
            return None
    fields = parse_qs(body.decode("latin-1"))
    key = fields.get("key", [""])[0].strip()
    return key if key and key.isascii() and key.isprintable() and " " not in key else None


def _from_here(connection: HTTPConnection) -> bool:
    """Whether what would change something, or open a channel, comes from one of our own pages."""
    origin = connection.headers.get("origin")
    if origin is None or (connection.scope["type"] == "http" and connection.scope["method"] in SAFE_METHODS):
        return True
    return origin.partition("://")[2].lower() == connection.headers.get("host", "").lower()


def _to_login(scope: Scope) -> Response:
    if scope["type"] == "http" and scope["method"] in SAFE_METHODS:
        return RedirectResponse(LOGIN, HTTPStatus.SEE_OTHER)
    return Response("log in first", HTTPStatus.UNAUTHORIZED)


async def _refuse(scope: Scope, receive: Receive, send: Send, response: Response) -> None:
    if scope["type"] == "websocket":
        return await send({"type": "websocket.close", "code": POLICY_VIOLATION})
    await response(scope, receive, send)
