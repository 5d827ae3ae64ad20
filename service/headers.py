"""What callers say of themselves, over HTTP or gRPC, and what every answer over HTTP says."""

import os
import re

from starlette.types import Scope

Header = tuple[bytes, bytes]
SANE_ID = re.compile(rb"(?!lgm_)[A-Za-z0-9._-]{1,64}")  # never an API key: ids are logged

SECURITY_HEADERS: list[Header] = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
CONTENT_POLICY = b"content-security-policy"
NO_CONTENT_POLICY: Header = (CONTENT_POLICY, b"default-src 'none'; frame-ancestors 'none'")
STRICT_TRANSPORT: Header = (b"strict-transport-security", b"max-age=31536000")


def header_of(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, in lower case; empty if there is none."""
    value: bytes
    for found, value in scope["headers"]:
        if found == name:
            return value
    return b""


def request_id_of(given: bytes) -> bytes:
    """The caller's where it is sane, else a new one."""
    return given if SANE_ID.fullmatch(given) else os.urandom(16).hex().encode()
