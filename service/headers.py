"""Reading what callers say of themselves, over HTTP or gRPC."""

import os
import re

from starlette.types import Scope

SANE_ID = re.compile(rb"(?!lgm_)[A-Za-z0-9._-]{1,64}")  # never an API key: ids are logged


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
