"""The page's ASGI application."""

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from nicegui import app as nicegui_app
from nicegui import core, ui
from starlette.types import ASGIApp

from service.dashboard.door import Door
from service.dashboard.feed import Feed
from service.dashboard.headers import PageHeaders
from service.dashboard.laboratory import Laboratory
from service.dashboard.options import PREFIX, Options
from service.dashboard.pages import register
from service.dashboard.sessions import Sessions
from service.dashboard.state import State
from service.dashboard.tabs import Tabs
from service.dashboard.upstream import Service

STATIC_FILES = Path(__file__).parent / "static"


def serve(options: Options, listener: socket.socket) -> None:
    """Until told to stop."""
    config = uvicorn.Config(
        create_app(options),
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips="*" if options.socket is not None else None,
        ws_per_message_deflate=False,
        timeout_graceful_shutdown=1,
    )
    uvicorn.Server(config).run(sockets=[listener])


def create_app(options: Options) -> ASGIApp:
    """Once a process: NiceGUI's pages are the process's."""
    service = Service(options)
    sessions = Sessions(service.whoami)
    state = State(
        options=options,
        service=service,
        sessions=sessions,
        feed=Feed(service),
        laboratory=Laboratory(options),
    )
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=_lifespan_of(state))
    nicegui_app.add_static_files("/static", STATIC_FILES)
    register(state)
    core.sio.on("log", _drop)  # else whoever has a tab open writes into the log
    core.app.config.socket_io_js_transports = ["websocket"]
    core.app.config.quasar_config["loadingBar"]["skipHijack"] = True  # a bar without a name, at every small request
    ui.run_with(
        app,
        title="lgm-guard",
        favicon=STATIC_FILES / "icon.svg",
        dark=None,
        language="en-US",
        mount_path=PREFIX,
        tailwind=False,
        binding_refresh_interval=None,
        gzip_middleware_factory=None,
        show_welcome_message=False,
    )
    door = Door(Tabs(app), sessions=sessions, service=service, options=options)
    return PageHeaders(door)


def _drop(sid: str, message: object) -> None:
    """What a browser has to say of its own."""


def _lifespan_of(state: State) -> Callable[[FastAPI], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await state.close()

    return lifespan
