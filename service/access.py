"""Who may do what, whatever the transport: API keys with roles before everything but the probes.

One table says which role a route asks for. What is not in it asks for admin, so that a new route is closed until
somebody opens it, and a caller without a key learns of no route at all.
"""

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from service.addresses import is_local_name
from service.docs import ASSETS, PAGE
from service.errors import ForbiddenError, SettingsError, UnauthenticatedError
from service.key_file import KeyFile
from service.keys import Role
from service.settings import Settings

OPEN_PATHS = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

# First two segments of a path -> the least role that may read there, and that may change; to delete is for admin.
LEAST_ROLES: dict[str, tuple[Role, Role]] = {
    "/": (Role.PREDICT, Role.ADMIN),
    **dict.fromkeys((PAGE, *ASSETS), (Role.PREDICT, Role.ADMIN)),
    "/openapi.json": (Role.PREDICT, Role.ADMIN),
    "/v1/predict": (Role.PREDICT, Role.PREDICT),
    "/v1/models": (Role.PREDICT, Role.ADMIN),
    "/v1/monitor": (Role.REVIEW, Role.ADMIN),
    "/v1/quarantine": (Role.REVIEW, Role.REVIEW),
    "/v1/whoami": (Role.PREDICT, Role.ADMIN),
    "/v1/about": (Role.REVIEW, Role.ADMIN),
    "/v2": (Role.PREDICT, Role.ADMIN),
    "/v2/models": (Role.PREDICT, Role.PREDICT),
}
UNLISTED = (Role.ADMIN, Role.ADMIN)
MAX_HOST_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `name` is what limits are counted by: a key's public id, or without keys the client's address."""

    name: str
    role: Role


class Access:
    """The door: HTTP hands in headers, gRPC its metadata."""

    def __init__(self, keys: KeyFile | None, *, only_this_machine: bool = False):
        self._keys = keys
        self._only_this_machine = only_this_machine

    @classmethod
    def of(cls, settings: Settings) -> "Access":
        """Raises KeyFileError."""
        if settings.api_keys is None:
            return cls(None, only_this_machine=not settings.allow_anonymous)
        return cls(KeyFile(settings.api_keys))

    @property
    def anonymous(self) -> bool:
        """Whether there are no keys, so that everybody is admin."""
        return self._keys is None

    def check_page(self, method: str, headers: Mapping[bytes, bytes]) -> None:
        """Without keys a browser of this machine is let in: whatever page it shows must not use that.

        A page from elsewhere may change nothing. One whose name was made to lead here ("DNS rebinding") is no page
        from elsewhere to a browser, but its name is neither this machine's nor an address.

        Raises ForbiddenError.
        """
        if method not in SAFE_METHODS:
            _check_origin(headers)
        if self._only_this_machine:
            _check_host(headers.get(b"host", b"localhost"))

    def authenticate(self, headers: Mapping[bytes, bytes], address: str) -> Principal:
        """Names are lower case. Raises UnauthenticatedError, in the same words for no, a wrong and an old key."""
        if self._keys is None:
            return Principal(address, Role.ADMIN)
        key = self._keys.ring.find(_credential(headers))
        if key is None:
            raise UnauthenticatedError("a valid API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY")
        return Principal(key.id, key.role)


def authorise(principal: Principal, needed: Role) -> None:
    """Raises ForbiddenError."""
    if principal.role < needed:
        raise ForbiddenError(f"this needs a key of role {needed.label}; this one's is {principal.role.label}")


def least_role(method: str, path: str) -> Role:
    if method == "DELETE":
        return Role.ADMIN
    segments = path.split("/", 3)
    reading, changing = LEAST_ROLES.get("/".join(segments[:3]), UNLISTED)
    return reading if method in SAFE_METHODS else changing


def client_network(client: tuple[str, int] | None) -> str:
    """The client's address; of IPv6 the network that one subscriber has, who could else be 2^64 clients."""
    host = client[0] if client else "unknown"
    return _subscriber(host[:MAX_HOST_LENGTH])


@lru_cache(maxsize=4096)
def _subscriber(host: str) -> str:
    """A trusted proxy may hand on whatever its own client called itself; that is taken as it is."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return host
    return str(address.ipv4_mapped or ipaddress.IPv6Network((address, 64), strict=False))


def check_exposure(settings: Settings, address: str) -> None:
    """Raises SettingsError where others than this machine's users could ask without a key."""
    if settings.api_keys is None and not settings.allow_anonymous and not ipaddress.ip_address(address).is_loopback:
        raise SettingsError(
            f"host: {settings.host} is open to other machines and no API keys are set; make some "
            "(lgm keys new --help) and name their file (--api-keys), or say --allow-anonymous"
        )


def _credential(headers: Mapping[bytes, bytes]) -> bytes:
    scheme, _, credential = headers.get(b"authorization", b"").partition(b" ")
    if scheme.lower() == b"bearer":
        return credential.strip()
    return headers.get(b"x-api-key", b"")


def _check_origin(headers: Mapping[bytes, bytes]) -> None:
    origin, host = headers.get(b"origin"), headers.get(b"host", b"")
    if origin is not None and origin.partition(b"://")[2].lower() != host.lower():
        raise ForbiddenError(
            f"Origin {_told(origin)} is not Host {_told(host)}: a page from elsewhere may change nothing here; "
            "a proxy in front must keep Host"
        )


def _told(header: bytes) -> str:
    return header[:MAX_HOST_LENGTH].decode("latin-1")


def _check_host(host: bytes) -> None:
    if not is_local_name(host):
        raise ForbiddenError(
            "Host: without API keys this machine alone may ask, by localhost or an address; "
            "set keys, or say --allow-anonymous"
        )


def metadata_headers(metadata: Any) -> dict[bytes, bytes]:
    """gRPC's metadata, pairs of a lower-case name and text or bytes, as `authenticate` takes headers."""
    return {
        name.encode(): value if isinstance(value, bytes) else str(value).encode("latin-1", "replace")
        for name, value in metadata or ()
    }
