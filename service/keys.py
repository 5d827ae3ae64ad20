"""API keys: what one is, how it is kept, and who holds it.

A key is 256 random bits, so nobody guesses it at whatever speed: a slow password hash would defend nothing
and cost every request. It is kept as SHA-256 and found by that digest, which a caller cannot steer bit by bit; so
neither the file nor the time of a lookup tells a key.
"""

import hashlib
import secrets
import time
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from service.errors import KeyFileError

PREFIX = "lgm_"
NUM_BYTES = 32
MAX_CREDENTIAL_BYTES = 256
RoleName = Literal["predict", "review", "admin"]
KeyId = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]


class Role(IntEnum):
    """Each includes those before it."""

    PREDICT = 1
    REVIEW = 2
    ADMIN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """What is known of a key; `id` is public and may be logged, `digest` is SHA-256 of the key."""

    id: str
    role: Role
    digest: bytes
    created: datetime
    expires: datetime | None
    revoked: bool

    def valid_at(self, unix_seconds: float) -> bool:
        return not self.revoked and (self.expires is None or unix_seconds < self.expires.timestamp())


class KeyRing:
    def __init__(self, keys: Iterable[Key]):
        self.keys = tuple(keys)
        self._by_digest = {key.digest: key for key in self.keys}

    def lets_somebody_in(self) -> bool:
        return any(key.valid_at(time.time()) for key in self.keys)

    def find(self, credential: bytes) -> Key | None:
        """The key that this is, if it is one that is valid now."""
        if not 0 < len(credential) <= MAX_CREDENTIAL_BYTES:
            return None
        digest = digest_of(credential)
        key = self._by_digest.get(digest)
        if key is None or not secrets.compare_digest(key.digest, digest) or not key.valid_at(time.time()):
            return None
        return key


def make_key() -> str:
    return PREFIX + secrets.token_urlsafe(NUM_BYTES)


def digest_of(credential: bytes) -> bytes:
    return hashlib.sha256(credential).digest()


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: KeyId
    role: RoleName
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    created: AwareDatetime
    expires: AwareDatetime | None = None


class _Revocation(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    id: KeyId
    at: AwareDatetime


class _Content(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    keys: tuple[_Entry, ...] = ()
    revoked: tuple[_Revocation, ...] = ()


def parse_keys(text: str) -> KeyRing:
    """Raises KeyFileError naming each wrong entry; never says what stands there, which might be a key."""
    try:
        content = _Content.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise KeyFileError(f"not TOML: {error}") from None
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise KeyFileError("; ".join(problems)) from None
    _check_distinct(content.keys)
    revoked = {revocation.id for revocation in content.revoked}
    return KeyRing(_key(entry, revoked=entry.id in revoked) for entry in content.keys)


def _key(entry: _Entry, *, revoked: bool) -> Key:
    return Key(
        id=entry.id,
        role=Role[entry.role.upper()],
        digest=bytes.fromhex(entry.sha256),
        created=entry.created,
        expires=entry.expires,
        revoked=revoked,
    )


def _check_distinct(entries: tuple[_Entry, ...]) -> None:
    for name, values in (("id", [entry.id for entry in entries]), ("sha256", [entry.sha256 for entry in entries])):
        if len(set(values)) < len(values):
            raise KeyFileError(f"keys: two entries have the same {name}")


def _describe(location: tuple[int | str, ...], message: str) -> str:
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    return f"{place}: {message}"
