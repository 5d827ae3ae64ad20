"""How many WebSockets one key may hold, by whichever logins."""

from contextlib import ExitStack

import pytest
from starlette.testclient import TestClient, WebSocketDenialResponse
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from service.dashboard.sessions import Session
from service.dashboard.tabs import MOST_TABS_OF_ONE, Tabs
from service.dashboard.upstream import Identity


async def page(scope: Scope, receive: Receive, send: Send) -> None:
    socket = WebSocket(scope, receive, send)
    await socket.accept()
    await socket.receive()


class Door:
    """Lets everybody in, by a new login each time, with the key or from the address that the query names."""

    def __init__(self):
        self._tabs, self._num_logins = Tabs(page), 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._num_logins += 1
        kind, _, who = scope["query_string"].decode().partition("=")
        identity = Identity(name=who, role="predict")
        known = {"key": None, "address": None, kind: who}
        scope["state"] = {"session": Session(id=str(self._num_logins), identity=identity, opened=0, **known)}
        await self._tabs(scope, receive, send)


@pytest.mark.parametrize("kind", ["key", "address"])
def test_one_who_holds_all_tabs_that_one_may_keeps_no_other_out(kind):
    client = TestClient(Door())
    with ExitStack() as held:
        for _ in range(MOST_TABS_OF_ONE):
            held.enter_context(client.websocket_connect(f"/?{kind}=greedy"))
        with pytest.raises(WebSocketDenialResponse) as refused, client.websocket_connect(f"/?{kind}=greedy"):
            pass
        assert refused.value.status_code == 503
        with client.websocket_connect(f"/?{kind}=other"):
            pass
    with client.websocket_connect(f"/?{kind}=greedy"):
        pass
