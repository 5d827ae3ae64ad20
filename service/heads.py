"""Which heads are refused before anything is run for them, and how."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic_core import to_json
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.headers import Header

MAX_HEADERS = 100
FIELDS = b"content-type: application/problem+json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"


class RefusedHeadError(Exception):
    """Raised into the parser, which stops."""


class Refusal(NamedTuple):
    status: int
    code: str
    detail: str

    @property
    def answer(self) -> bytes:
        """The last on its connection."""
        line = STATUS_LINE[self.status]
        body = to_json(
            {
                "type": f"urn:lgm-guard:problem:{self.code}",
                "title": line.split(maxsplit=2)[2].strip(),
                "status": self.status,
                "detail": self.detail,
                "error": self.detail,
            }
        )
        return line + FIELDS % len(body) + body


MALFORMED = Refusal(400, "malformed-http", "this is not valid HTTP/1.1")
UNSURE_UPGRADE = Refusal(400, "malformed-http", "Upgrade: to WebSocket without a body, after the answers before it")


def too_large(max_head_bytes: int) -> Refusal:
    limit = f"{max_head_bytes} bytes or {MAX_HEADERS} headers, the limits"
    return Refusal(431, "head-too-large", f"request line, headers and framing take more than {limit}")


def is_surely_framed(headers: Sequence[Header], version: str) -> bool:
    """Whether every reader takes it for the same request: one Host, and no coding of the body but chunks."""
    hosts = [name for name, _ in headers if name == b"host"]
    codings = [value for name, value in headers if name == b"transfer-encoding"]
    has_host = len(hosts) == 1 or (not hosts and version == "1.0")
    return has_host and (not codings or [coding.lower() for coding in codings] == [b"chunked"])


def announces_body(headers: Sequence[Header]) -> bool:
    framing = [header for header in headers if header[0] in (b"content-length", b"transfer-encoding")]
    return framing not in ([], [(b"content-length", b"0")])
