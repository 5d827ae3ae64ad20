"""BentoML: adaptive batching in each of its worker processes."""

import os
from typing import Annotated, Any

import bentoml
from pydantic import BeforeValidator, WithJsonSchema

from tests.benchmarks.serving.work import MAX_BATCH_SIZE, WORKERS, Work

# The request's body as it is, as a batch of one: no form, no JSON, no temporary file.
Bodies = Annotated[list[Any], BeforeValidator(lambda body: [body]), WithJsonSchema({"type": "file"})]


@bentoml.service(workers=int(os.environ[WORKERS]), traffic={"timeout": 60})
class Screening:
    def __init__(self) -> None:
        self._work = Work.from_environment()

    @bentoml.api(route="/predict", batchable=True, max_batch_size=MAX_BATCH_SIZE, max_latency_ms=10_000)
    def predict(self, bodies: Bodies, /) -> list[Any]:
        return self._work.judge([self._work.read(body) for body in bodies])
