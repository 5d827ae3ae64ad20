"""What ten open tabs of the dashboard cost the service: `python -m tests.benchmarks.dashboard`.

wrk asks for predictions as fast as they come, in turn with and without ten tabs on the overview, whose charts all
move then. A tab here takes what a browser's would and draws nothing. Beside the ratio stands what the processes that
the page adds have used of a processor, which other load on the machine changes less.
"""

import argparse
import asyncio
import contextlib
import re
import statistics
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
from websockets.asyncio.client import ClientConnection, connect

from tests.benchmarks.serving import wrk
from tests.benchmarks.serving.forms import png_file
from tests.server import Server

NUM_TABS = 10
CONNECTIONS = 32
SEVEN = Path(__file__).parents[1] / "samples" / "seven.png"
PING, PONG, CONNECT = "2", "3", "40"


class Tabs:
    """So many tabs on the overview, which take their updates."""

    def __init__(self, url: str):
        self._url = url
        self.num_bytes = self.num_messages = 0

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            sockets = [await stack.enter_async_context(await self._tab()) for _ in range(NUM_TABS)]
            takers = [asyncio.create_task(self._take(socket)) for socket in sockets]
            yield
            for taker in takers:
                taker.cancel()
            await asyncio.gather(*takers, return_exceptions=True)

    async def _tab(self) -> connect:
        async with httpx.AsyncClient(base_url=self._url, timeout=60) as client:
            page = (await client.get("/dashboard/")).text
        (client_id,) = re.findall(r"""["']client_id["']: ["']([0-9a-f-]+)""", page)
        query = f"client_id={client_id}&tab_id={uuid4()}&document_id={uuid4()}&next_message_id=0"
        socket = self._url.replace("http", "ws", 1) + "/dashboard/_nicegui_ws/socket.io/"
        return connect(f"{socket}?EIO=4&transport=websocket&implicit_handshake=true&{query}", max_size=None)

    async def _take(self, socket: ClientConnection) -> None:
        await socket.send(CONNECT)
        async for message in socket:
            self.num_bytes, self.num_messages = self.num_bytes + len(message), self.num_messages + 1
            if message == PING:
                await socket.send(PONG)


def page_seconds(server: Server) -> float:
    """Processor time of the page's process so far."""
    family = psutil.Process(server.process.pid).children(recursive=True)
    pages = [process for process in family if "service.dashboard" in process.cmdline()]
    return sum(sum(process.cpu_times()[:2]) for process in pages)


async def measure(server: Server, plan: Path, *, rounds: int, seconds: int) -> None:
    load = dict(connections=CONNECTIONS, seconds=seconds)
    ratios, shares, tabs = [], [], Tabs(server.url)
    for number in range(rounds):
        alone = await asyncio.to_thread(wrk.run, server.url, plan, **load)
        async with tabs.open():
            before = page_seconds(server)
            with_tabs = await asyncio.to_thread(wrk.run, server.url, plan, **load)
            shares.append((page_seconds(server) - before) / seconds)
        ratios.append(with_tabs.requests_per_second / alone.requests_per_second)
        say(
            f"round {number + 1}: {alone.requests_per_second:,.0f} requests/s alone, "
            f"{with_tabs.requests_per_second:,.0f} with {NUM_TABS} tabs, ratio {ratios[-1]:.3f}; "
            f"the page used {100 * shares[-1]:.1f} % of one processor"
        )
    took = rounds * seconds * NUM_TABS
    say(
        f"median ratio {statistics.median(ratios):.3f}; the page {100 * statistics.median(shares):.1f} % of one "
        f"processor; a tab took {tabs.num_messages / took:.1f} messages, {tabs.num_bytes / took:,.0f} bytes a second"
    )


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6)
    given = parser.parse_args()
    wrk.require()
    with tempfile.TemporaryDirectory() as folder:
        plan = Path(folder) / "plan"
        wrk.write_plan(plan, png_file("/v1/predict"), [SEVEN.read_bytes()])
        server = Server("--drain-seconds", "0", "--access-log-share", "0", "--state-folder", folder)
        try:
            server.await_ready()
            asyncio.run(measure(server, plan, rounds=given.rounds, seconds=given.seconds))
        finally:
            server.stop()


if __name__ == "__main__":
    main()
