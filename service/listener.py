"""Connections accepted many at a time.

uvloop accepts one connection in a turn of the event loop, whose turns are long when there is much to do: whoever
connects then, a probe above all, waits behind all that connected before.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from functools import partial

BACKLOG = 4096  # connections that wait to be accepted, as far as the system allows
MAX_ACCEPTED = 64  # in one turn
CLOSING_SECONDS = 1.0
PAUSE_SECONDS = 1.0  # where there is no file left for another connection

logger = logging.getLogger(__name__)


class Listener:
    """Makes a protocol for each connection to a bound socket, which stays its owner's.

    The protocol must not close its transport in `connection_made`: uvloop would wait for ever for it to be made.

    tls: the context of the next connection, or None. handshake_seconds: the longest that its handshake may take.
    max_handshakes: how many may go on at once; beyond, the oldest ends, so that nobody keeps others out by doing
    nothing.
    """

    def __init__(
        self,
        bound: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        tls: Callable[[], ssl.SSLContext] | None,
        handshake_seconds: float,
        max_handshakes: int,
    ):
        self._socket, self._make_protocol, self._tls = bound, make_protocol, tls
        self._handshake = {} if tls is None else {"ssl_handshake_timeout": handshake_seconds}
        self._max_handshakes = max_handshakes
        self._connecting: dict[asyncio.Task[None], None] = {}  # the oldest first
        self._loop = asyncio.get_running_loop()
        self._open = False

    def open(self) -> None:
        self._socket.setblocking(False)
        self._socket.listen(BACKLOG)
        self._open = True
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        if self._open:
            self._open = False
            self._loop.remove_reader(self._socket)

    async def wait_closed(self) -> None:
        """Whoever is not through the handshake a moment later has nothing to lose."""
        if self._connecting:
            _, slow = await asyncio.wait(list(self._connecting), timeout=CLOSING_SECONDS)
            for connecting in slow:
                connecting.cancel()
            await asyncio.gather(*slow, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(MAX_ACCEPTED):
            try:
                accepted, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError as error:
                return self._pause(error)
            accepted.setblocking(False)
            connecting = self._loop.create_task(self._connect(accepted))
            connecting.add_done_callback(partial(self._connected, accepted))
            self._connecting[connecting] = None
            if len(self._connecting) > self._max_handshakes:
                next(iter(self._connecting)).cancel()

    async def _connect(self, accepted: socket.socket) -> None:
        tls = None if self._tls is None else self._tls()
        await self._loop.connect_accepted_socket(self._make_protocol, accepted, ssl=tls, **self._handshake)

    def _connected(self, accepted: socket.socket, connecting: asyncio.Task[None]) -> None:
        del self._connecting[connecting]
        if connecting.cancelled():
            return accepted.close()
        error = connecting.exception()
        if error is not None:
            accepted.close()
        if isinstance(error, OSError):  # the peer's handshake, or its end
            logger.debug("a connection came to nothing: %s", error)
        elif error is not None:
            logger.error("a connection came to nothing", exc_info=error)

    def _pause(self, error: OSError) -> None:
        """Those who wait go on waiting; asking for them at once again would take all the time there is."""
        logger.warning("no more connections for %g s: %s", PAUSE_SECONDS, error)
        self._loop.remove_reader(self._socket)
        self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._socket, self._accept)
