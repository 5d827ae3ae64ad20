"""Who is logged in. A key is held here, in memory, and nowhere else; the browser has a signed ticket to it."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from itsdangerous import BadSignature, TimestampSigner

from service.client.errors import ProblemError
from service.dashboard.upstream import Identity

COOKIE = "lgm_session_"  # and a port
LIFETIME_SECONDS = 12 * 3600
KNOWN_SECONDS = 10.0  # for so long is what the service says of a caller taken for granted
MOST_SESSIONS = 4096
MOST_OF_A_NAME = 16


@dataclass(kw_only=True, slots=True)
class Session:
    """key: None where the service asks for none; address: whose it is then, if that is known.

    identity: whom the service took the key for when it was last asked.
    """

    id: str
    key: str | None
    identity: Identity
    opened: float
    address: str | None = None
    asked: float = field(init=False)
    asking: asyncio.Lock = field(init=False, default_factory=asyncio.Lock)

    def __post_init__(self) -> None:
        self.asked = self.opened


class Sessions:
    """Of too many the oldest of whoever has the most goes. None outlives the process: then one logs in again."""

    def __init__(self, whoami: Callable[[str | None], Awaitable[Identity]]):
        self._whoami = whoami
        self._signer = TimestampSigner(secrets.token_bytes(32))
        self._sessions: dict[str, Session] = {}  # from the oldest on

    def open(self, key: str, identity: Identity) -> str:
        """The cookie's value."""
        session = Session(id=secrets.token_urlsafe(32), key=key, identity=identity, opened=time.monotonic())
        self._make_room(identity.name)
        self._sessions[session.id] = session
        return self._signer.sign(session.id).decode()

    def _make_room(self, name: str | None) -> None:
        """Who logs in again and again ends sessions of its own, and nobody else's."""
        counts = Counter(session.identity.name for session in self._sessions.values())
        if counts[name] < MOST_OF_A_NAME:
            if len(self._sessions) < MOST_SESSIONS:
                return
            name = max(counts, key=lambda other: (counts[other], other == name))
        self.close(next(session for session in self._sessions.values() if session.identity.name == name))

    def find(self, cookie: str) -> Session | None:
        try:
            session_id = self._signer.unsign(cookie, max_age=LIFETIME_SECONDS).decode()
        except BadSignature:
            return None
        return self._sessions.get(session_id)

    def is_open(self, session: Session) -> bool:
        """Also of a tab that is open since before; a session without a key never ends."""
        if session.key is None:
            return True
        return session.id in self._sessions and time.monotonic() - session.opened < LIFETIME_SECONDS

    async def confirm(self, session: Session) -> bool:
        """Whether it is open and the service takes its key, whose role may be another by now.

        Raises ClientError where the service does not say.
        """
        async with session.asking:  # a page asks for many things at once
            if self.is_open(session) and time.monotonic() - session.asked > KNOWN_SECONDS:
                await self._ask(session)
        return self.is_open(session)

    async def _ask(self, session: Session) -> None:
        try:
            session.identity = await self._whoami(session.key)
        except ProblemError as error:
            if error.problem.status != HTTPStatus.UNAUTHORIZED:
                raise
            self.close(session)
        session.asked = time.monotonic()

    def close(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
