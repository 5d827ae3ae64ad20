"""The Open Inference Protocol v2 over REST."""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from service.compression import check_encoding
from service.deadlines import HEADER, deadline_of
from service.disconnects import hung_up
from service.forms import read_body
from service.inference_protocol.inference import judge, ready_engine
from service.inference_protocol.metadata import model_metadata, server_metadata
from service.inference_protocol.rest import HEADER_LENGTH, Form, decode, encode, header_length
from service.inference_protocol.schemas import (
    InferenceResponse,
    ModelMetadata,
    ModelReady,
    ServerLive,
    ServerMetadata,
    ServerReady,
)
from service.routes.context import runtime_of
from service.routes.predict import DEADLINE, ENCODING
from service.schemas import Problem

CHEAP_JSON_BYTES = 16 * 1024
CHEAP_BINARY_BYTES = 1024 * 1024
BINARY: dict[str, Any] = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {"application/json": {"schema": {"$ref": "#/components/schemas/InferenceRequest"}}, **BINARY},
}
LENGTH = {
    "description": "Bytes of the JSON; binary tensors follow it.",
    "schema": {"type": "integer", "minimum": 0},
}
LENGTH_NAME = HEADER_LENGTH.title()
LENGTH_PARAMETER = {"name": LENGTH_NAME, "in": "header", "required": False, **LENGTH}
MODEL = "/v2/models/{name}"
VERSION = "/v2/models/{name}/versions/{version}"

router = APIRouter(tags=["Open Inference Protocol"])


@router.get("/v2", summary="The server and its extensions")
async def server() -> ServerMetadata:
    return server_metadata()


@router.get("/v2/health/live", summary="Whether the process is alive")
async def live() -> ServerLive:
    return ServerLive(live=True)


@router.get("/v2/health/ready", summary="Whether to send traffic here", responses={503: {"model": Problem}})
async def ready(request: Request) -> ServerReady:
    runtime_of(request).check_ready()
    return ServerReady(ready=True)


REFUSALS: dict[int | str, Any] = {status: {"model": Problem} for status in (404, 503)}


@router.get(MODEL, summary="A model's inputs and outputs", responses=REFUSALS)
async def model(request: Request, name: str) -> ModelMetadata:
    runtime = runtime_of(request)
    return model_metadata(runtime, runtime.engine_for(name))


@router.get(VERSION, summary="A version's inputs and outputs", responses=REFUSALS)
async def model_version(request: Request, name: str, version: str) -> ModelMetadata:
    runtime = runtime_of(request)
    return model_metadata(runtime, runtime.engine_for(name, version))


@router.get(MODEL + "/ready", summary="Whether a model answers", responses=REFUSALS)
async def model_ready(request: Request, name: str) -> ModelReady:
    return ModelReady(name=ready_engine(runtime_of(request), name).name, ready=True)


@router.get(VERSION + "/ready", summary="Whether a version answers", responses=REFUSALS)
async def version_ready(request: Request, name: str, version: str) -> ModelReady:
    return ModelReady(name=ready_engine(runtime_of(request), name, version).name, ready=True)


INFERENCE: dict[str, Any] = {
    "response_model": InferenceResponse,
    "responses": {
        200: {"content": BINARY, "headers": {LENGTH_NAME: LENGTH}},
        **{status: {"model": Problem} for status in (400, 404, 408, 413, 415, 422, 500, 503, 504)},
    },
    "openapi_extra": {"requestBody": REQUEST_BODY, "parameters": [LENGTH_PARAMETER, DEADLINE, ENCODING]},
}


@router.post(MODEL + "/infer", summary="Judge a tensor of images", **INFERENCE)
async def infer(request: Request, name: str) -> Response:
    """JSON, or JSON followed by binary tensors, its length in the header Inference-Header-Content-Length."""
    return await _infer(request, name)


@router.post(VERSION + "/infer", summary="Judge a tensor of images by a version", **INFERENCE)
async def infer_version(request: Request, name: str, version: str) -> Response:
    """The same, by one version of the model."""
    return await _infer(request, name, version)


async def _infer(request: Request, name: str, version: str | None = None) -> Response:
    runtime = runtime_of(request)
    settings = runtime.settings
    runtime.engine_for(name, version).check_room()  # before anything is read
    deadline = deadline_of(dict(request.scope["headers"]).get(HEADER), limit_seconds=settings.request_timeout_seconds)
    form = Form(
        encoding=check_encoding(request.headers.get("content-encoding", "")),
        header_length=header_length(request.headers.get(HEADER_LENGTH)),
    )
    body = await read_body(request.receive, timeout_seconds=settings.request_timeout_seconds, deadline=deadline)
    with runtime.engine_for(name, version).in_use() as engine:  # again: another may be active by now
        work = partial(
            decode,
            body,
            form,
            engine.image_format,
            max_body_bytes=settings.max_body_bytes,
            max_instances=settings.max_instances,
        )
        inference, judgements = await judge(
            runtime,
            engine,
            work,
            state=request.scope["state"],
            deadline=deadline.at,
            cheap=_is_cheap(form, len(body)),
            abandoned=hung_up(request.receive),
        )
    content, length = encode(engine, inference, judgements)
    if length is None:
        return Response(content, media_type="application/json")
    return Response(content, headers={HEADER_LENGTH: str(length)}, media_type="application/octet-stream")


def _is_cheap(form: Form, body_length: int) -> bool:
    """Reading 16 KiB of JSON or checking 1 MiB of floats takes some 100 microseconds."""
    json_length = body_length if form.header_length is None else form.header_length
    return json_length <= CHEAP_JSON_BYTES and body_length <= CHEAP_BINARY_BYTES and not form.encoding
