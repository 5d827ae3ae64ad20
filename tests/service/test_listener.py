"""Connections are accepted many at a time, with TLS or without, as long as there are files for them."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trustme
import uvloop

from service import listener as listening
from service.listener import MAX_ACCEPTED, Listener


class Greeting(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        transport.write(b"hello")
        asyncio.get_running_loop().call_soon(transport.close)


@asynccontextmanager
async def opened(**options: Any) -> AsyncIterator[tuple[Listener, int]]:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        listener = Listener(
            bound, Greeting, **{"tls": None, "handshake_seconds": 5, "max_handshakes": 1000, **options}
        )
        listener.open()
        try:
            yield listener, bound.getsockname()[1]
        finally:
            listener.close()
            await listener.wait_closed()


async def greeting(port: int) -> bytes:
    loop = asyncio.get_running_loop()
    with socket.socket() as client:
        client.setblocking(False)
        async with asyncio.timeout(20):
            await loop.sock_connect(client, ("127.0.0.1", port))
            return await loop.sock_recv(client, 100)


def run(scenario) -> None:
    """On both event loops."""
    asyncio.run(scenario())
    uvloop.run(scenario())


def test_all_that_connect_at_once_are_accepted():
    async def scenario() -> None:
        async with opened() as (_, port):
            said = await asyncio.gather(*(greeting(port) for _ in range(3 * MAX_ACCEPTED)))
            assert said == [b"hello"] * len(said)

    run(scenario)


def test_one_turn_of_the_loop_accepts_many():
    """uvloop's own server would accept one."""

    async def scenario() -> None:
        async with opened() as (listener, port):
            clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(MAX_ACCEPTED)]
            await asyncio.sleep(0)
            while not listener._connecting:
                await asyncio.sleep(0)
            assert len(listener._connecting) == MAX_ACCEPTED
            await listener.wait_closed()
            for client in clients:
                client.close()

    run(scenario)


def test_nobody_is_accepted_after_the_end():
    async def scenario() -> None:
        async with opened() as (listener, port):
            assert await greeting(port) == b"hello"
            listener.close()
            waiting = asyncio.create_task(greeting(port))  # the system still lets it wait
            await asyncio.sleep(0.05)
            assert not waiting.done()
            waiting.cancel()
            await asyncio.wait([waiting])

    run(scenario)


def test_a_lack_of_files_is_waited_out(monkeypatch):
    monkeypatch.setattr(listening, "PAUSE_SECONDS", 0.05)

    class NoFiles:
        """A bound socket whose first acceptance fails as where every file is in use."""

        def __init__(self, bound: socket.socket):
            self._bound, self.failed = bound, 0

        def accept(self) -> Any:
            if not self.failed:
                self.failed += 1
                raise OSError(24, "Too many open files")
            return self._bound.accept()

        def __getattr__(self, name: str) -> Any:
            return getattr(self._bound, name)

    async def scenario() -> None:
        async with opened() as (listener, port):
            listener.close()
            listener._socket = NoFiles(listener._socket)
            listener.open()
            assert await greeting(port) == b"hello"
            assert listener._socket.failed == 1

    asyncio.run(scenario())


def test_nobody_keeps_others_out_by_not_shaking_hands():
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)

    async def scenario() -> None:
        async with opened(tls=lambda: server, handshake_seconds=1000, max_handshakes=3) as (listener, port):
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(5)]
            async with asyncio.timeout(20):
                for reader, _ in silent[:2]:
                    assert await reader.read() == b""
                assert len(listener._connecting) == 3
                secured = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
                assert await secured[0].read() == b"hello"
            for _, writer in [*silent, secured]:
                writer.close()

    run(scenario)


def test_a_handshake_that_comes_to_nothing_disturbs_nobody():
    authority = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("localhost").configure_cert(server)
    authority.configure_trust(client)

    async def scenario() -> None:
        async with opened(tls=lambda: server, handshake_seconds=0.2) as (_, port):
            plain, silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
            plain[1].write(b"GET / HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(20):
                for reader, writer in (plain, silent):  # the one told off, the other cut off when its time is over
                    assert b"hello" not in await reader.read()
                    writer.close()
                secured = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="localhost")
                assert await secured[0].read() == b"hello"
                secured[1].close()

    run(scenario)
