"""The event loop shared out: so much begins in one turn of it, the rest waits for the next.

When a thousand requests arrive together, a loop that begins them all is deaf until it has. Here probes and answers
have their turn in between, and nobody who will be served waits longer: whoever came first begins first. Those for
whom there is no room are told so beside them, a few a turn: a refusal takes the loop a seventh of what a request
takes, so that under several times the load that can be served little else would be done.
"""

import asyncio
from collections import deque
from collections.abc import Callable

PIECE, REQUEST, FULL = 1, 15, 256  # what a turn takes: sixteen requests, or many pieces of data that begin none
MAX_LATE = 8  # in one turn, of those for whom there was no room
PROBES = (b"GET /healthz ", b"GET /readyz ", b"GET /metrics ", b"GET /v2/health/")

GoOn = Callable[[], None]


class Turns:
    """Pieces of data that begin or wait; requests among them that have no place in the application yet."""

    def __init__(self) -> None:
        self._spent = 0
        self._waiting: deque[tuple[GoOn, bool]] = deque()
        self._late: deque[GoOn] = deque()
        self._num_waiting_requests = self._num_let_in = 0

    @property
    def num_requests(self) -> int:
        """How many wait, or were let in and have not begun to run."""
        return self._num_waiting_requests + self._num_let_in

    def begin(self, data: bytes) -> bool:
        """Whether a piece that has arrived may be looked at in this turn; probes always may."""
        is_busy = self._waiting or self._late or self._spent >= FULL
        if is_busy and not data.startswith(PROBES):
            return False
        self._spend(PIECE)
        return True

    def wait(self, go_on: GoOn, *, is_request: bool) -> None:
        """`go_on` is called when those who waited before have begun."""
        self._waiting.append((go_on, is_request))
        self._num_waiting_requests += is_request

    def wait_for_no(self, go_on: GoOn) -> None:
        """The same for a request that can probably only be refused."""
        self._late.append(go_on)

    def let_in(self) -> None:
        """A request goes to the application."""
        self._spend(REQUEST)
        if not self._num_let_in:
            loop = asyncio.get_running_loop()
            loop.call_soon(loop.call_soon, self._forget_let_in)  # after the first steps of all that come in now
        self._num_let_in += 1

    def _forget_let_in(self) -> None:
        self._num_let_in = 0

    def _spend(self, cost: int) -> None:
        if not self._spent:
            asyncio.get_running_loop().call_soon(self._next)
        self._spent += cost

    def _next(self) -> None:
        self._spent = 0
        while self._waiting and self._spent < FULL:
            self._spend(PIECE)
            go_on, is_request = self._waiting.popleft()
            self._num_waiting_requests -= is_request
            go_on()
        for _ in range(min(MAX_LATE, len(self._late))):
            self._spend(PIECE)
            self._late.popleft()()
