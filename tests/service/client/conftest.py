"""Both clients behind one way of asking, so that every test is a contract of both."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from service.client import AsyncClient, Client
from tests.server import Server

Ask = Callable[..., Any]


def ask_sync(url: str, method: str, *arguments: Any, request_id: str | None = None, **options: Any) -> Any:
    further = {} if request_id is None else {"request_id": request_id}
    with Client(url, **options) as client:
        return getattr(client, method)(*arguments, **further)


def ask_async(url: str, method: str, *arguments: Any, request_id: str | None = None, **options: Any) -> Any:
    further = {} if request_id is None else {"request_id": request_id}

    async def run() -> Any:
        async with AsyncClient(url, **options) as client:
            return await getattr(client, method)(*arguments, **further)

    return anyio.run(run)


@pytest.fixture(params=[ask_sync, ask_async], ids=["sync", "async"])
def ask(request: pytest.FixtureRequest) -> Ask:
    """ask(url, method, *arguments, **options of the client)"""
    found: Ask = request.param
    return found


@pytest.fixture(scope="module")
def url(digits_bundle: Path) -> Iterator[str]:
    """A real service over the digits bundle."""
    server = Server("--bundle", str(digits_bundle), "--workers", "1", "--drain-seconds", "0")
    try:
        yield server.await_ready()
    finally:
        server.stop()
