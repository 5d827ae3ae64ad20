"""One system call an answer: uvicorn writes the head and the body apart, and each write is one.

With small answers the writes are a third of what the process spends.
"""

import asyncio
from typing import Any


class JoinedWrites:
    """A transport that writes together what is written in one turn of the event loop."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop):
        self._transport = transport
        self._loop = loop
        self._pending: list[bytes] = []

    def write(self, data: bytes) -> None:
        if not self._pending:
            self._loop.call_soon(self._flush)
        self._pending.append(data)

    def write_at_once(self, data: bytes) -> None:
        """For an answer in one piece; what was written before goes with it."""
        self._pending.append(data)
        self._flush()

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def release(self) -> asyncio.Transport:
        """The transport itself, for whoever writes in another way from now on."""
        self._flush()
        return self._transport

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        pending, self._pending = self._pending, []
        if pending and not self._transport.is_closing():
            self._transport.write(b"".join(pending))
