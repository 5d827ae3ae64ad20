"""Where to listen, one address for a name, the same for every server of the process; by what names one is asked."""

import ipaddress
import socket
from contextlib import ExitStack
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from service.errors import SettingsError

Address = tuple[socket.AddressFamily, socket.SocketKind, int, Any]


def resolve(host: str, port: int) -> Address:
    """Family, kind, protocol and socket address of the first that the name stands for. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    return family, kind, protocol, address


def with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def bind(host: str, port: int) -> socket.socket:
    """A socket there that does not listen yet. Raises SettingsError."""
    try:
        family, kind, protocol, address = resolve(host, port)
        with ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from None
    return listener


@lru_cache(maxsize=1024)
def is_local_name(host: bytes) -> bool:
    """Whether a browser that sends it was not led here by a name of somebody else's."""
    try:
        name = urlsplit("//" + host.decode("latin-1")).hostname or ""
    except ValueError:
        return False
    return name == "localhost" or name.endswith(".localhost") or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
