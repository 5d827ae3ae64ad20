"""Calls a server with KServe's own clients: python kserve_calls.py URL GRPC_ADDRESS MODEL < images.json

Prints what they made of the answers, as JSON.
"""

import asyncio
import json
import logging
import sys

import grpc
import httpx
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, InferResponse, RESTConfig

BINARY = {"binary_data_output": True}


def request(
    model: str, images: np.ndarray, *, binary: bool, parameters: dict[str, bool] | None = None
) -> InferRequest:
    tensor = InferInput("images", list(images.shape), "FP32")
    tensor.set_data_from_numpy(images, binary_data=binary)
    return InferRequest(model, [tensor], request_id="7", parameters=parameters)


def read(response: InferResponse) -> dict[str, object]:
    assert response.id == "7"
    return {output.name: output.as_numpy().tolist() for output in response.outputs}


async def main(url: str, address: str, model: str) -> None:
    images = np.array(json.load(sys.stdin), np.float32)
    rest, grpc_client = InferenceRESTClient(RESTConfig(protocol="v2")), InferenceGRPCClient(address)
    async with rest, grpc_client:
        health = [
            await rest.is_server_live(url),
            await rest.is_server_ready(url),
            await rest.is_model_ready(url, model),
            await grpc_client.is_server_live(),
            await grpc_client.is_server_ready(),
            await grpc_client.is_model_ready(model),
        ]
        as_json, as_bytes = (request(model, images, binary=binary) for binary in (False, True))
        to_bytes = request(model, images, binary=True, parameters=BINARY)
        answers = {
            "REST JSON": await rest.infer(url, as_json, model),
            "REST binary": await rest.infer(url, as_bytes, model),
            "REST binary output": await rest.infer(url, to_bytes, model),
            "gRPC typed": await grpc_client.infer(request(model, images, binary=False)),
            "gRPC raw": await grpc_client.infer(request(model, images, binary=True)),
        }
        errors: list[int | str] = []
        try:
            await rest.infer(url, as_json, "other")
        except httpx.HTTPStatusError as error:
            errors.append(error.response.status_code)
        try:
            await grpc_client.infer(request("other", images, binary=True))
        except grpc.RpcError as error:
            errors.append(error.code().name)
    found = {name: read(answer) for name, answer in answers.items()}
    json.dump({"health": health, "answers": found, "errors": errors}, sys.stdout)


logging.disable()
asyncio.run(main(*sys.argv[1:]))
