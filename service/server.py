"""The process behind `lgm serve`: bind, load, listen; on SIGTERM leave in an order that fails no request."""

import asyncio
import gc
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable
from functools import partial
from types import FrameType
from typing import Any, cast

import uvicorn

from detectors.manifest import load_manifest
from service.access import check_exposure
from service.addresses import bind, with_port
from service.app import create_app
from service.dashboard.forwarding import MAX_MESSAGE_BYTES
from service.dashboard.options import PREFIX
from service.devices import resolve_devices
from service.errors import SettingsError
from service.listener import Listener
from service.logs import configure_logs
from service.runtime import Runtime
from service.settings import Settings, check_folder, stray_variables
from service.tls import Certificate, certificate_of
from service.transport import transport_options

logger = logging.getLogger(__name__)
ListenGrpc = Callable[[Runtime], Awaitable[tuple[Any, int]]]
KEEP_ALIVE_SECONDS = 75  # longer than the usual proxy's, so that it is the proxy that closes


def serve(settings: Settings) -> None:
    """Serve until told to stop. Raises SettingsError, BundleError, the first of them before anything listens."""
    configure_logs(style=settings.log_format, level=settings.log_level)
    for told in stray_variables(os.environ):
        logger.warning(told)
    listen_grpc = _grpc_listener(settings)
    certificate = certificate_of(settings)
    resolve_devices(settings.device)
    load_manifest(settings.bundle)
    check_folder("models", settings.models)
    check_folder("reports", settings.reports)
    with bind(settings.host, settings.port) as listener:
        check_exposure(settings, listener.getsockname()[0])
        runtime = Runtime(settings=settings)
        app = create_app(settings, runtime=runtime)
        transport = transport_options(runtime, over_tls=certificate is not None)
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            ws_max_size=MAX_MESSAGE_BYTES,
            ws_per_message_deflate=False,
            timeout_graceful_shutdown=settings.shutdown_timeout_seconds,
            **transport,
        )
        server = Server(config, runtime, listen_grpc, certificate)
        server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure


GARBAGE_THRESHOLD = 50_000  # objects more than there were, before young ones are looked through


class Server(uvicorn.Server):
    """uvicorn's, but: not ready first, then a moment of serving on, then closed and drained; exit status 0."""

    def __init__(
        self,
        config: uvicorn.Config,
        runtime: Runtime,
        listen_grpc: ListenGrpc | None,
        certificate: Certificate | None,
    ):
        super().__init__(config)
        self._runtime, self._certificate = runtime, certificate
        self.failure: BaseException | None = None
        self._listen_grpc = listen_grpc
        self._grpc: Any = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._listen_grpc is not None:
            self._grpc, _ = await self._listen_grpc(self._runtime)
        await super().startup([])
        for listener in sockets or ():
            self._listen(listener)
            host, port = listener.getsockname()[:2]
            scheme = "http" if self._certificate is None else "https"
            logger.info("listening on %s://%s", scheme, with_port(host, port))
            if self._runtime.dashboard is not None:
                logger.info("the dashboard is at %s://%s%s/", scheme, with_port(host, port), PREFIX)
        if self._runtime.loading is not None:
            self._runtime.loading.add_done_callback(self._check_loaded)

    def _listen(self, bound: socket.socket) -> None:
        config = self.config
        protocol_class = cast(Callable[..., asyncio.Protocol], config.http_protocol_class)
        make_protocol = partial(protocol_class, config, self.server_state, self.lifespan.state)
        settings = self._runtime.settings
        listener = Listener(
            bound,
            make_protocol,
            tls=None if self._certificate is None else self._certificate.context,
            handshake_seconds=settings.head_timeout_seconds,
            max_handshakes=settings.max_connections,
        )
        try:
            listener.open()
        except OSError as error:  # somebody else listens there since it was bound
            raise SettingsError(f"cannot listen on {settings.host}:{settings.port}: {error.strerror}") from None
        self.servers.append(listener)  # type: ignore[arg-type]

    def _check_loaded(self, loading: asyncio.Task[None]) -> None:
        """A service that can never be ready ends."""
        gc.collect()
        gc.freeze()  # what was imported stays; collections that go through it all would hold up requests
        # Nor through every request that waits: thousands do under load, and what they leave is no garbage.
        gc.set_threshold(GARBAGE_THRESHOLD, *gc.get_threshold()[1:])
        if not loading.cancelled() and loading.exception() is not None:
            self.failure = loading.exception()
            self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._runtime.draining = True
        if self.failure is None:
            logger.info("shutting down: no longer ready, serving on for %g s", self._runtime.settings.drain_seconds)
            await asyncio.sleep(self._runtime.settings.drain_seconds)
        self._runtime.pulse.end_streams()  # which would last for ever
        if self._grpc is not None:  # refuses new calls and ends those that run
            await self._grpc.stop(self._runtime.settings.shutdown_timeout_seconds)
        await self._runtime.close_dashboard()
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would raise the signal again after the drain, and end with its status.
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True


def _grpc_listener(settings: Settings) -> ListenGrpc | None:
    if settings.grpc_port is None:
        return None
    try:
        from service.inference_protocol import grpc_server
    except ImportError as error:
        raise SettingsError(f"grpc_port: {error.name} is missing; pip install 'lgm-guard[grpc]'") from None
    return grpc_server.listen
