"""The process behind `lgm serve`: bind, load, listen; on SIGTERM leave in an order that fails no request."""

import asyncio
import logging
import signal
import socket
from contextlib import ExitStack
from types import FrameType

import torch
import uvicorn

from service.app import create_app
from service.engine import Engine
from service.errors import SettingsError
from service.logs import configure_logs
from service.runtime import Runtime
from service.security import check_exposure
from service.settings import Settings
from service.transport import transport_options

logger = logging.getLogger(__name__)
KEEP_ALIVE_SECONDS = 75  # longer than the usual proxy's, so that it is the proxy that closes


def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises SettingsError, BundleError before anything is served."""
    configure_logs(style=settings.log_format, level=settings.log_level)
    torch.set_num_threads(settings.threads)
    with ExitStack() as on_exit:
        listener = on_exit.enter_context(_bind(settings))
        check_exposure(settings, listener.getsockname()[0])
        runtime = Runtime(settings=settings)
        app = create_app(settings, runtime=runtime)
        transport = transport_options(settings, runtime.metrics)
        runtime.engine = Engine.load(settings, runtime.metrics)
        on_exit.callback(runtime.engine.close)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
            **transport,
        )
        Server(config, runtime).run(sockets=[listener])


class Server(uvicorn.Server):
    """uvicorn's, but: not ready first, then a moment of serving on, then closed and drained; exit status 0."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime):
        super().__init__(config)
        self._runtime = runtime

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            scheme = "https" if self.config.is_ssl else "http"
            logger.info("listening on %s://%s:%d", scheme, f"[{host}]" if ":" in host else host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._runtime.draining = True
        logger.info("shutting down: no longer ready, serving on for %g s", self._runtime.settings.drain_seconds)
        await asyncio.sleep(self._runtime.settings.drain_seconds)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again after the drain, and end with its status.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _bind(settings: Settings) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with ExitStack() as on_failure:
            listener = on_failure.enter_context(socket.socket(family, kind, protocol))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            on_failure.pop_all()
    except OSError as error:
        raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
    return listener
