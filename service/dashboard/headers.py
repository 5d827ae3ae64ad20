"""What every answer of the page says to the browser: run nothing but ours, load nothing from elsewhere."""

import secrets
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

CONTENT_POLICY = b"content-security-policy"
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
# NiceGUI compiles its templates in the browser (unsafe-eval) and sets styles of elements (unsafe-inline for styles).
# Scripts run from this origin, or inline with the nonce of this very answer; handlers in injected markup do not.
POLICY = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
Headers = list[tuple[bytes, bytes]]


class PageHeaders:
    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        await self._app(scope, receive, _Answer(send).send)


class _Answer:
    """Passes an answer on; a page is held until it is whole, since every script in it gets the nonce."""

    def __init__(self, send: Send):
        self._send = send
        self._nonce = secrets.token_urlsafe(16)
        self._page: list[bytes] = []
        self._start: Message | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ()), *_missing(message.get("headers", ()), self._nonce)]
            message = {**message, "headers": headers}
            if _is_page(headers):
                self._start = message
                return
        elif self._start is not None and message["type"] == "http.response.body":
            return await self._hold(message)
        await self._send(message)

    async def _hold(self, message: Message) -> None:
        self._page.append(message.get("body", b""))
        if message.get("more_body"):
            return
        assert self._start is not None
        body = b"".join(self._page).replace(b"<script", b'<script nonce="%s"' % self._nonce.encode())
        headers = [(name, value) for name, value in self._start["headers"] if name != b"content-length"]
        headers.append((b"content-length", b"%d" % len(body)))
        await self._send({**self._start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _missing(given: Iterable[tuple[bytes, bytes]], nonce: str) -> Headers:
    names = {name.lower() for name, _ in given}
    ours = [*SECURITY_HEADERS, (CONTENT_POLICY, POLICY.format(nonce=nonce).encode()), (b"cache-control", b"no-store")]
    return [header for header in ours if header[0] not in names]


def _is_page(headers: Headers) -> bool:
    """Pages with a policy of their own, as reports have, are left as they are."""
    named = dict(headers)
    is_html = named.get(b"content-type", b"").startswith(b"text/html")
    return is_html and b"nonce-" in named.get(CONTENT_POLICY, b"")
