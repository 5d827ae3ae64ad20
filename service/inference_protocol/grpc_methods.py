"""What each method of the protocol's gRPC service answers."""

from functools import partial
from typing import Any

from service.deadlines import HEADER, deadline_of
from service.engine import Engine
from service.errors import NotReadyError
from service.inference_protocol import grpc_messages, messages
from service.inference_protocol.grpc_calls import Call
from service.inference_protocol.inference import judge, ready_engine
from service.inference_protocol.metadata import model_metadata, server_metadata
from service.runtime import Runtime

CHEAP_BYTES = 1024 * 1024


async def server_live(runtime: Runtime, request: Any, call: Call) -> Any:
    return messages.ServerLiveResponse(live=True)


async def server_ready(runtime: Runtime, request: Any, call: Call) -> Any:
    try:
        runtime.check_ready()
    except NotReadyError:
        return messages.ServerReadyResponse(ready=False)
    return messages.ServerReadyResponse(ready=True)


async def model_ready(runtime: Runtime, request: Any, call: Call) -> Any:
    try:
        ready_engine(runtime, request.name, request.version or None)
    except NotReadyError:
        return messages.ModelReadyResponse(ready=False)
    return messages.ModelReadyResponse(ready=True)


async def server_metadata_of(runtime: Runtime, request: Any, call: Call) -> Any:
    return messages.ServerMetadataResponse(**server_metadata().model_dump())


async def model_metadata_of(runtime: Runtime, request: Any, call: Call) -> Any:
    engine = _engine(runtime, request.name, request.version)
    return grpc_messages.model_metadata_message(model_metadata(runtime, engine))


async def model_infer(runtime: Runtime, request: Any, call: Call) -> Any:
    settings = runtime.settings
    engine = _engine(runtime, request.model_name, request.model_version)
    engine.check_room()
    deadline = deadline_of(call.headers.get(HEADER), limit_seconds=settings.request_timeout_seconds).at
    work = partial(grpc_messages.decode, request, engine.image_format, max_instances=settings.max_instances)
    cheap = bool(request.raw_input_contents) and request.ByteSize() <= CHEAP_BYTES
    with engine.in_use():
        inference, judgements = await judge(runtime, engine, work, state=call.state, deadline=deadline, cheap=cheap)
    return grpc_messages.encode(engine, inference, judgements)


METHODS = {
    "ServerLive": server_live,
    "ServerReady": server_ready,
    "ModelReady": model_ready,
    "ServerMetadata": server_metadata_of,
    "ModelMetadata": model_metadata_of,
    "ModelInfer": model_infer,
}


def _engine(runtime: Runtime, name: str, version: str) -> Engine:
    return runtime.engine_for(name, version or None)
