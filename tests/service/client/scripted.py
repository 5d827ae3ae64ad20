"""A real HTTP server that does what a script says, request by request, and keeps what it was sent."""

import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

Act = Callable[["Handler"], None]

PREDICTION = {
    "label": "7",
    "class_index": 7,
    "probability": 0.5,
    "log_likelihood": -60.0,
    "p_value": 0.25,
    "flagged": False,
    "evidence": {"likelihood": {"score": 60.0, "p_value": 0.5}},
}
MODEL = {"name": "mnist", "version": "abc"}


def answered(count: int = 1) -> dict[str, Any]:
    return {"request_id": "r", "model": MODEL, "predictions": [PREDICTION] * count}


def problem(status: int, code: str, **faults: str) -> dict[str, Any]:
    return {
        "type": f"urn:lgm-guard:problem:{code}",
        "title": "Title",
        "status": status,
        "detail": "what is wrong",
        "error": "what is wrong",
        "errors": [{"field": field, "detail": detail} for field, detail in faults.items()],
        "request_id": "r",
    }


@dataclass(frozen=True)
class Received:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "ScriptedServer"

    def do_GET(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.next_act(Received(self.command, self.path, headers, body))(self)

    do_POST = do_CONNECT = do_GET

    def log_message(self, format: str, *arguments: object) -> None:
        """Not to stderr."""


class ScriptedServer(ThreadingHTTPServer):
    """A context manager; after the script's end it goes on with its last act."""

    daemon_threads = True

    def __init__(self, *script: Act):
        super().__init__(("127.0.0.1", 0), Handler)
        self.received: list[Received] = []
        self._script = list(script)
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def next_act(self, received: Received) -> Act:
        with self._lock:
            self.received.append(received)
            return self._script.pop(0) if len(self._script) > 1 else self._script[0]

    def __enter__(self) -> "ScriptedServer":
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.shutdown()
        self.server_close()


def answer(status: int, body: object, **headers: str) -> Act:
    def act(handler: Handler) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        handler.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(content)

    return act


def hang_up(handler: Handler) -> None:
    """Ends the connection before a byte of an answer."""
    handler.close_connection = True


def garbage(handler: Handler) -> None:
    handler.wfile.write(b"this is no HTTP\r\n\r\n")
    handler.close_connection = True


def half_an_answer(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")
    handler.close_connection = True


def stall(handler: Handler) -> None:
    """Half an answer, and then nothing for a second."""
    half_an_answer(handler)
    time.sleep(1)


def trickle_head(handler: Handler) -> None:
    _trickle(handler, b"HTTP/1.1 200 OK\r\nx-long: ", b"a")


def go_on_for_ever(handler: Handler) -> None:
    _trickle(handler, b"", b"HTTP/1.1 100 Continue\r\n\r\n")


def trickle(handler: Handler) -> None:
    _trickle(handler, b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n", b" ")


def _trickle(handler: Handler, start: bytes, piece: bytes) -> None:
    """A piece every 50 ms, so that no single wait is long; until the client has had enough."""
    handler.wfile.write(start)
    handler.close_connection = True
    for _ in range(1000):
        try:
            handler.wfile.write(piece)
        except OSError:
            return
        time.sleep(0.05)
