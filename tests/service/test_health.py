"""The container's check against a real server, with the standard library alone."""

import subprocess
import sys
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest


class Readiness(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/readyz" else 404)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def port() -> Iterator[int]:
    with HTTPServer(("127.0.0.1", 0), Readiness) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def check(port: int) -> int:
    code = (
        "import sys, service.health as health; status = health.main(); "
        "assert not {'torch', 'fastapi', 'pydantic'} & set(sys.modules); sys.exit(status)"
    )
    return subprocess.run(
        [sys.executable, "-c", code], env={"LGM_PORT": str(port)}, timeout=60, check=False
    ).returncode


def test_ready_is_0_and_anything_else_is_1(port, monkeypatch):
    assert check(port) == 0
    monkeypatch.setattr(Readiness, "status", 503)
    assert check(port) == 1


def test_nobody_there_is_1(port):
    assert check(1) == 1
