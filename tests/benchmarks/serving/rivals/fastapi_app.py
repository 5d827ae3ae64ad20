"""Plain FastAPI: a blocking handler on its thread pool, one request a forward pass."""

import json
from typing import Annotated

from fastapi import Body, FastAPI, Response

from tests.benchmarks.serving.work import Work

app = FastAPI()
work = Work.from_environment()


@app.get("/ready")
def ready() -> dict[str, bool]:
    return {"ready": True}


@app.post("/predict")
def predict(data: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Response:
    (predictions,) = work.judge([work.read(data)])
    return Response(json.dumps({"predictions": predictions}), media_type="application/json")
