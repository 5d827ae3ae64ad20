"""The page's process as the service keeps it: started when somebody first asks for the page, and again when it ends.

It is a process of its own so that what it draws, imports and collects never waits in the loop where requests are
answered. It speaks to the service through a socket in a folder of its own, where only this user may go: the same
routes under the same keys, without TLS or a port between two processes of one service.
"""

import asyncio
import contextlib
import logging
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from service.dashboard.options import Options
from service.settings import Settings

logger = logging.getLogger(__name__)
BACKLOG = 128
STABLE_SECONDS = 10
FIRST_DELAY_SECONDS, MOST_DELAY_SECONDS = 0.1, 30.0


class InnerDoor(uvicorn.Server):
    """The app once more, on another socket of the same loop. Signals are the outer server's."""

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


@dataclass(slots=True)
class _Running:
    """folder holds both sockets; the page's listener stays open here, so that callers wait while it starts again."""

    folder: Path
    listener: socket.socket
    door: InnerDoor
    tasks: list[asyncio.Task[None]] = field(default_factory=list)


class Dashboard:
    """`address` is where the page listens. Predictions know nothing of it."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._running: _Running | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._closed = False

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    def address(self, app: ASGIApp) -> Path:
        """The page's socket; whoever connects waits until the page is up."""
        if self._running is None:
            self._running = self._start(app)
        return self._running.folder / "page.sock"

    async def close(self) -> None:
        self._closed = True
        running, self._running = self._running, None
        if running is None:
            return
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        running.door.should_exit = True
        await asyncio.gather(*running.tasks, return_exceptions=True)
        running.listener.close()
        shutil.rmtree(running.folder, ignore_errors=True)

    def _start(self, app: ASGIApp) -> _Running:
        folder = Path(tempfile.mkdtemp(prefix="lgm-"))
        config = uvicorn.Config(
            app,
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            forwarded_allow_ips="*",  # the page alone gets here, and says for whom
            timeout_graceful_shutdown=1,
        )
        running = _Running(folder=folder, listener=_listen(folder / "page.sock"), door=InnerDoor(config))
        inner = _listen(folder / "service.sock")
        running.tasks = [
            asyncio.create_task(running.door.serve(sockets=[inner])),
            asyncio.create_task(self._keep(running)),
        ]
        return running

    async def _keep(self, running: _Running) -> None:
        delay = FIRST_DELAY_SECONDS
        while not self._closed:
            started = time.monotonic()
            status = await self._run(running)
            if self._closed:
                return
            if time.monotonic() - started > STABLE_SECONDS:
                delay = FIRST_DELAY_SECONDS
            logger.error("the dashboard's process has ended with status %d; next try in %g s", status, delay)
            await asyncio.sleep(delay)
            delay = min(MOST_DELAY_SECONDS, 2 * delay)

    async def _run(self, running: _Running) -> int:
        """Until it ends. Its stdin stays open as long as this process lives."""
        descriptor = running.listener.fileno()
        process = self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "service.dashboard", str(descriptor)),
            stdin=asyncio.subprocess.PIPE,
            pass_fds=[descriptor],
        )
        assert process.stdin is not None
        process.stdin.write(self._options(running).model_dump_json().encode() + b"\n")
        return await process.wait()

    def _options(self, running: _Running) -> Options:
        settings = self._settings
        return Options(
            url="http://localhost",
            socket=running.folder / "service.sock",
            allow_anonymous=True,  # who may reach the page may reach the service
            bundles=(settings.bundle.resolve(),),
            models=None if settings.models is None else settings.models.resolve(),
            reports=None if settings.reports is None else settings.reports.resolve(),
            log_format=settings.log_format,
            log_level=settings.log_level,
        )


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(BACKLOG)
    listener.setblocking(False)
    return listener
