"""A gRPC server in this process, and what a client makes of it."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np

from service.inference_protocol import messages
from service.inference_protocol.grpc_server import listen
from service.runtime import Runtime
from service.settings import Settings, load_settings

PATH = "/inference.GRPCInferenceService/"
ModelInferRequest = messages.REQUESTS["ModelInfer"]
Scenario = Callable[[Runtime, grpc.aio.Channel], Awaitable[None]]


def run_scenario(settings: Settings, scenario: Scenario, *, loaded: bool = True, **given: Any) -> None:
    """Against a server with these settings, and those given on top; loaded: whether its model is."""

    async def main() -> None:
        runtime = Runtime(settings=load_settings(**{**settings.model_dump(), "grpc_port": 0, **given}))
        if loaded:
            await runtime.registry.load_default()
        server, port = await listen(runtime)
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                await scenario(runtime, channel)
        finally:
            await server.stop(None)
            await runtime.close()

    asyncio.run(main())


@contextmanager
def held(runtime: Runtime) -> Iterator[None]:
    """Meanwhile the worker processes stand still."""
    pids = runtime.engine_for().worker_pids
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def outcome(channel: grpc.aio.Channel, name: str, request: Any, **options: Any) -> grpc.aio.AioRpcError | bytes:
    try:
        answer: bytes = await channel.unary_unary(PATH + name)(request.SerializeToString(), **options)
    except grpc.aio.AioRpcError as error:
        return error
    return answer


def raw(images: np.ndarray, **changed: Any) -> Any:
    tensor = {"name": "images", "datatype": "FP32", "shape": images.shape, **changed}
    return ModelInferRequest(model_name="digits", inputs=[tensor], raw_input_contents=[images.tobytes()])
