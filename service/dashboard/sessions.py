"""Who is logged in. A key is held here, in memory, and nowhere else; the browser has a signed ticket to it."""

import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass

from itsdangerous import BadSignature, TimestampSigner

from service.dashboard.upstream import Identity

COOKIE = "lgm_session"
LIFETIME_SECONDS = 12 * 3600
MOST_SESSIONS = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Session:
    """key: None where the service asks for none. address: whose it is then, if that is known."""

    id: str
    key: str | None
    identity: Identity
    opened: float
    address: str | None = None


class Sessions:
    """The oldest goes when there are too many. None outlives the process: then one logs in again."""

    def __init__(self) -> None:
        self._signer = TimestampSigner(secrets.token_bytes(32))
        self._sessions: OrderedDict[str, Session] = OrderedDict()

    def open(self, key: str, identity: Identity) -> str:
        """The cookie's value."""
        session = Session(id=secrets.token_urlsafe(32), key=key, identity=identity, opened=time.monotonic())
        self._sessions[session.id] = session
        while len(self._sessions) > MOST_SESSIONS:
            self._sessions.popitem(last=False)
        return self._signer.sign(session.id).decode()

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

    def close(self, session: Session) -> None:
        self._sessions.pop(session.id, None)
