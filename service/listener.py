"""Connections accepted many at a time.

uvloop accepts one connection in a turn of the event loop, whose turns are long when there is much to do: whoever
connects then, a probe above all, waits behind all that connected before.
"""

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable

BACKLOG = 4096  # connections that wait to be accepted, as far as the system allows
MAX_ACCEPTED = 64  # in one turn
CLOSING_SECONDS = 1.0
PAUSE_SECONDS = 1.0  # where there is no file left for another connection

logger = logging.getLogger(__name__)


class Listener:
    """Makes a protocol for each connection to a bound socket, which stays its owner's.

    The protocol must not close its transport in `connection_made`: uvloop would wait for ever for it to be made.

    tls: the context, or None. handshake_seconds: the longest that its handshake may take.
    """

    def __init__(
        self,
        bound: socket.socket,
        make_protocol: Callable[[], asyncio.Protocol],
        *,
        tls: ssl.SSLContext | None,
        handshake_seconds: float,
    ):
        self._socket, self._make_protocol, self._tls = bound, make_protocol, tls
        self._handshake = {} if tls is None else {"ssl_handshake_timeout": handshake_seconds}
        self._connecting: set[asyncio.Task[None]] = set()
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
            _, slow = await asyncio.wait(self._connecting, timeout=CLOSING_SECONDS)
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
            self._connecting.add(connecting)
            connecting.add_done_callback(self._connecting.discard)

    async def _connect(self, accepted: socket.socket) -> None:
        try:
            await self._loop.connect_accepted_socket(self._make_protocol, accepted, ssl=self._tls, **self._handshake)
        except (OSError, ssl.SSLError) as error:  # the peer's handshake, or its end
            logger.debug("a connection came to nothing: %s", error)
            accepted.close()

    def _pause(self, error: OSError) -> None:
        """Those who wait go on waiting; asking for them at once again would take all the time there is."""
        logger.warning("no more connections for %g s: %s", PAUSE_SECONDS, error)
        self._loop.remove_reader(self._socket)
        self._loop.call_later(PAUSE_SECONDS, self._resume)

    def _resume(self) -> None:
        if self._open:
            self._loop.add_reader(self._socket, self._accept)
