"""What the service is sent for each of those who look, through one client for them all."""

import asyncio

import pytest

from service.client.errors import ProblemError
from service.dashboard.options import Options
from service.dashboard.upstream import Service
from tests.service.client.scripted import ScriptedServer, answer, problem

COOKIE = "SESSION=of-ann; Path=/; HttpOnly"


async def look(url: str) -> None:
    """As ann, as bob, and as who has no key."""
    service = Service(Options(url=url, allow_anonymous=False))
    try:
        await service.whoami("ann")
        async with service.events("/v1/monitor/stream", key="bob"):
            pass
        with pytest.raises(ProblemError):
            await service.whoami(None)
    finally:
        await service.close()


def test_a_cookie_set_for_one_key_is_sent_for_nobody():
    known = answer(200, {"name": "ann", "role": "admin"}, set_cookie=COOKIE)
    with ScriptedServer(
        known, answer(200, {}, set_cookie=COOKIE), answer(401, problem(401, "unauthenticated"))
    ) as server:
        asyncio.run(look(server.url))
    sent = [received.headers for received in server.received]
    assert [headers.get("authorization") for headers in sent] == ["Bearer ann", "Bearer bob", None]
    assert not any("cookie" in headers for headers in sent)
