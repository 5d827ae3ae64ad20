"""The ASGI application."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI

from service import problems
from service.docs import router as docs_router
from service.engine import Engine
from service.limits import Limits, flight_of, limiter_of
from service.middleware import BodyLimit, Observation, RequestIdentity
from service.openapi import describe
from service.routes import operations, predict
from service.runtime import Runtime
from service.security import Access, Security
from service.settings import Settings
from service.tracing import Tracing, spans_of

DESCRIPTION = "An image classifier that knows how likely its input is."


def create_app(settings: Settings, *, runtime: Runtime | None = None) -> FastAPI:
    """An app that loads, warms and checks its bundle at start-up, unless the runtime brings an engine."""
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
    app.include_router(operations.router)
    app.include_router(predict.router)
    app.include_router(docs_router)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    app.add_middleware(Limits, flight=flight_of(settings), limiter=limiter_of(settings), runtime=runtime)
    app.add_middleware(Security, access=Access.of(settings), runtime=runtime)
    app.add_middleware(Observation, runtime=runtime)
    app.add_middleware(RequestIdentity, runtime=runtime)
    app.add_middleware(Tracing, spans=spans_of(settings))
    problems.add_handlers(app, runtime)
    app.__dict__["openapi"] = partial(_openapi, app)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    runtime: Runtime = app.state.runtime
    if runtime.engine is not None:
        yield  # whoever made it closes it
        return
    runtime.engine = await asyncio.to_thread(Engine.load, runtime.settings, runtime.metrics)
    try:
        yield
    finally:
        runtime.draining = True
        await asyncio.to_thread(runtime.engine.close)


def _openapi(app: FastAPI) -> dict[str, object]:
    if app.openapi_schema is None:
        app.openapi_schema = describe(app)
    return app.openapi_schema
