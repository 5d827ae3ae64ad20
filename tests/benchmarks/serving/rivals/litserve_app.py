"""LitServe: batches in worker processes, ZeroMQ between them and the HTTP processes."""

import os
import sys
from typing import Annotated, Any

from fastapi import Body
from litserve import LitAPI, LitServer
from torch import Tensor

from tests.benchmarks.serving.work import MAX_BATCH_SIZE, WORKERS, Work


class ScreeningAPI(LitAPI):
    def setup(self, device: str) -> None:
        self._work = Work.from_environment()

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Tensor:
        return self._work.read(request)

    def batch(self, inputs: list[Tensor]) -> list[Tensor]:
        return list(inputs)  # requests differ in size: joined by judge

    def predict(self, requests: list[Tensor]) -> list[list[dict[str, Any]]]:
        return self._work.judge(requests)

    def unbatch(self, output: list[list[dict[str, Any]]]) -> list[list[dict[str, Any]]]:
        return output

    def encode_response(self, output: list[dict[str, Any]]) -> dict[str, Any]:
        return {"predictions": output}


if __name__ == "__main__":
    api = ScreeningAPI(max_batch_size=MAX_BATCH_SIZE, batch_timeout=0.001, api_path="/predict")
    server = LitServer(api, accelerator="cpu", workers_per_device=int(os.environ[WORKERS]), fast_queue=True)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), log_level="error", generate_client_file=False)
