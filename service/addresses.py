"""Where to listen: one address for a name, the same for every server of the process."""

import socket
from typing import Any

Address = tuple[socket.AddressFamily, socket.SocketKind, int, Any]


def resolve(host: str, port: int) -> Address:
    """Family, kind, protocol and socket address of the first that the name stands for. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = found[0]
    return family, kind, protocol, address


def with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
