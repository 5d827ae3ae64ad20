"""How many tabs one key may have open: a tab holds a socket as long as it is open, and there is no end to asking."""

from collections import Counter
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.dashboard.sessions import Session

# Of one key, not of one login, since nobody counts those. After a lost connection there are twice as many for a
# moment, until the old ones are found dead.
MOST_TABS_OF_ONE = 32
TOO_MANY = f"{MOST_TABS_OF_ONE} tabs are open with this key, or without one from this address, the limit"


class Tabs:
    """Behind the door. A browser that is refused asks again by itself, after seconds."""

    def __init__(self, app: ASGIApp):
        self._app = app
        self._open: Counter[tuple[str | None, str | None]] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return await self._app(scope, receive, send)
        session: Session = scope["state"]["session"]
        owner = session.key, session.address
        if self._open[owner] >= MOST_TABS_OF_ONE:
            refusal = Response(TOO_MANY, HTTPStatus.SERVICE_UNAVAILABLE, media_type="text/plain")
            return await refusal(scope, receive, send)
        self._open[owner] += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._open[owner] -= 1
            self._open += Counter()  # without those who have none
