"""The shipped bundle behind a real server."""

from collections.abc import Iterator

import pytest

from tests.server import Server


@pytest.fixture(scope="module")
def shipped_server() -> Iterator[Server]:
    server = Server("--workers", "1", "--drain-seconds", "0", "--grpc-port", "0")
    try:
        server.await_ready()
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="module")
def url(shipped_server: Server) -> str:
    return shipped_server.url
