"""The ASGI application."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from itertools import chain

from fastapi import FastAPI
from starlette.routing import Route

from service import problems
from service.dashboard.forwarding import Forwarding
from service.docs import router as docs_router
from service.fast_routes import FastRoutes
from service.limits import Limits
from service.middleware import BodyLimit, HeadAsGet, Observation, RequestIdentity
from service.openapi import describe
from service.routes import inference, models, monitor, operations, predict, quarantine, whoami
from service.runtime import Runtime
from service.security import Security
from service.settings import Settings
from service.tracing import Tracing

ROUTERS = (
    operations.router,
    predict.router,
    inference.router,
    models.router,
    whoami.router,
    quarantine.router,
    monitor.router,
    docs_router,
)
DESCRIPTION = "An image classifier that knows how likely its input is."


def create_app(settings: Settings, *, runtime: Runtime | None = None) -> FastAPI:
    """An app that begins to load its bundle at start-up and is ready once the bundle is warm and checked."""
    runtime = runtime or Runtime(settings=settings)
    app = FastAPI(
        title="lgm-guard",
        version=version("lgm-guard"),
        description=DESCRIPTION,
        lifespan=_lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.runtime = runtime
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(HeadAsGet)
    app.add_middleware(FastRoutes, routes=predict.router.routes, runtime=runtime)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(
        Limits, flight=runtime.flight, oversight=runtime.oversight, limiter=runtime.limiter, runtime=runtime
    )
    app.add_middleware(Security, access=runtime.access, runtime=runtime)
    if runtime.dashboard is not None:
        app.add_middleware(Forwarding, dashboard=runtime.dashboard, runtime=runtime)
    everywhere = chain(app.routes, *(router.routes for router in ROUTERS))
    routes = [route for route in everywhere if isinstance(route, Route)]
    app.add_middleware(Observation, runtime=runtime, routes=routes)
    app.add_middleware(RequestIdentity, runtime=runtime)
    app.add_middleware(Tracing, spans=runtime.spans)
    problems.add_handlers(app, runtime, routes)
    app.__dict__["openapi"] = partial(_openapi, app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime: Runtime = app.state.runtime
    runtime.start()
    try:
        yield
    finally:
        await runtime.close()


def _openapi(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return app.openapi_schema
