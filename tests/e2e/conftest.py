"""The shipped bundle behind a real server."""

from collections.abc import Iterator

import pytest

from tests.server import Server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    server = Server("--workers", "1", "--drain-seconds", "0")
    try:
        yield server.await_ready()
    finally:
        server.stop()
