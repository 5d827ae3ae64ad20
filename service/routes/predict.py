"""POST /v1/predict."""

import time
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from service.answers import answer
from service.compression import WINDOWS, check_encoding
from service.deadlines import HEADER, deadline_of
from service.decoding import Batch, Limits
from service.disconnects import hung_up
from service.engine import Engine
from service.errors import DeadlineError
from service.forms import Decode, decoder_for, read_body
from service.rate_limit import paying_for_faults
from service.recording import recorded
from service.routes.context import runtime_of
from service.schemas import PredictResponse, Problem
from service.settings import Settings

router = APIRouter(tags=["prediction"])

INLINE_BYTES = 16 * 1024  # a body that is decoded in less time than handing it to another thread takes

DEADLINE = {
    "name": HEADER.decode().title(),
    "in": "header",
    "required": False,
    "description": "Milliseconds from now after which the answer is of no use; then it is 504.",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999},
}
ENCODING = {
    "name": "Content-Encoding",
    "in": "header",
    "required": False,
    "description": "Of a compressed body.",
    "schema": {"type": "string", "enum": list(WINDOWS)},
}
FILE = {"schema": {"type": "string", "format": "binary"}}
REQUEST_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "image/png": FILE,
        "image/jpeg": FILE,
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["image"],
                "additionalProperties": False,
                "properties": {
                    "image": {
                        "type": "array",
                        "minItems": 1,
                        "items": {"type": "string", "format": "binary"},
                    }
                },
            }
        },
        "application/json": {"schema": {"$ref": "#/components/schemas/PredictRequest"}},
    },
}


@router.post(
    "/v1/predict",
    summary="Label, likelihood and verdict of images",
    response_model=PredictResponse,
    responses={status: {"model": Problem} for status in (400, 408, 413, 415, 422, 500, 503, 504)},
    openapi_extra={"requestBody": REQUEST_BODY, "parameters": [DEADLINE, ENCODING]},
)
async def predict(request: Request) -> Response:
    """Send an image file, several in a form, or JSON. A bad image among several fails alone, in its place."""
    runtime = runtime_of(request)
    settings, headers = runtime.settings, dict(request.scope["headers"])
    runtime.engine_for().check_room()  # before anything is read, let alone decoded
    deadline = deadline_of(headers.get(HEADER), limit_seconds=settings.request_timeout_seconds)
    encoding = check_encoding(headers.get(b"content-encoding", b"").decode("latin-1"))
    decode = decoder_for(headers.get(b"content-type", b""), encoding)
    body = await read_body(request.receive, timeout_seconds=settings.request_timeout_seconds, deadline=deadline)
    state, in_passing = request.scope["state"], len(body) <= INLINE_BYTES and not encoding
    with runtime.engine_for().in_use() as engine:  # again: another may be active by now
        with recorded("decode"), paying_for_faults(state):
            batch = await _decode(engine, decode, body, settings, deadline.at, in_passing=in_passing)
        state["num_images"] = batch.size
        judgements = await engine.screen(batch.images, deadline.at, abandoned=hung_up(request.receive))
    runtime.offer(engine, batch.images, judgements, state)
    if batch.faults:
        runtime.metrics.images.labels("rejected").inc(len(batch.faults))
    content = answer(
        batch,
        judgements,
        engine,
        request_id=state["request_id"],
        withhold_flagged=settings.policy == "withhold",
    )
    return Response(to_json(content), media_type="application/json")


async def _decode(
    engine: Engine, decode: Decode, body: bytes, settings: Settings, deadline: float, *, in_passing: bool
) -> Batch:
    limits = Limits(
        image_format=engine.image_format,
        max_pixels=settings.max_pixels,
        max_instances=settings.max_instances,
        max_body_bytes=settings.max_body_bytes,
    )
    if in_passing and engine.small_images:
        return decode(body, limits)
    return await engine.prepare(partial(_decode_in_time, decode, body, limits, deadline))


def _decode_in_time(decode: Decode, body: bytes, limits: Limits, deadline: float) -> Batch:
    if time.monotonic() >= deadline:
        raise DeadlineError("no answer before the deadline")
    return decode(body, limits)
