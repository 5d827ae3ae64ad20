"""Which heads are refused before anything is run for them, and how."""

from collections.abc import Sequence
from typing import NamedTuple

from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from service.headers import NO_CONTENT_POLICY, SECURITY_HEADERS, STRICT_TRANSPORT, Header
from service.problems import MEDIA_TYPE, problem_body

MAX_HEADERS = 100


def problem_head(status: int, *, over_tls: bool) -> bytes:
    """Of a problem that is told without the application: its line and the headers that all have; its own follow."""
    headers = [(b"content-type", MEDIA_TYPE.encode()), *SECURITY_HEADERS, NO_CONTENT_POLICY]
    headers += [STRICT_TRANSPORT] if over_tls else []
    return STATUS_LINE[status] + b"".join(b"%b: %b\r\n" % header for header in headers)


class RefusedHeadError(Exception):
    """Raised into the parser, which stops."""


class Refusal(NamedTuple):
    status: int
    code: str
    detail: str

    def answer(self, request_id: bytes, *, over_tls: bool) -> bytes:
        """The last on its connection."""
        body = problem_body(self.status, self.detail, code=self.code, request_id=request_id.decode())
        own = b"connection: close\r\nx-request-id: %b\r\ncontent-length: %d\r\n\r\n" % (request_id, len(body))
        return problem_head(self.status, over_tls=over_tls) + own + body


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
