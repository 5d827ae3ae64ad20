"""Plain FastAPI: a blocking handler on its thread pool, one request a forward pass."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from anyio.to_thread import current_default_thread_limiter
from fastapi import Body, FastAPI, Response

from tests.benchmarks.serving.work import Work


@asynccontextmanager
async def one_thread(app: FastAPI) -> AsyncIterator[None]:
    """The pool's forty threads would wait for the interpreter's lock more than they work."""
    current_default_thread_limiter().total_tokens = 1
    yield


app = FastAPI(lifespan=one_thread)
work = Work.from_environment()


@app.get("/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict")
def predict(data: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
    (predictions,) = work.judge([work.read(data)])
    return Response(json.dumps({"predictions": predictions}), media_type="application/json")
