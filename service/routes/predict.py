"""POST /v1/predict."""

import asyncio
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from service.answers import answer
from service.decoding import Batch, Limits
from service.engine import Engine
from service.errors import DeadlineError
from service.forms import Decode, decoder_for, read_body
from service.judgements import Judgements
from service.routes.context import runtime_of
from service.schemas import PredictResponse, Problem
from service.settings import Settings

router = APIRouter(tags=["prediction"])

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
    openapi_extra={"requestBody": REQUEST_BODY},
)
async def predict(request: Request) -> Response:
    """Send an image file, several in a form, or JSON. A bad image among several fails alone, in its place."""
    runtime = runtime_of(request)
    engine, settings = runtime.active_engine(), runtime.settings
    decode = decoder_for(request.headers.get("content-type", ""))
    body = await read_body(request, timeout_seconds=settings.request_timeout_seconds)
    batch, judgements = await _judge(engine, decode, body, settings)
    request.state.num_images = len(judgements) + len(batch.faults)
    runtime.metrics.images.labels("rejected").inc(len(batch.faults))
    content = answer(
        batch,
        judgements,
        engine,
        request_id=request.state.request_id,
        withhold_flagged=settings.policy == "withhold",
    )
    return Response(to_json(content), media_type="application/json")


async def _judge(engine: Engine, decode: Decode, body: bytes, settings: Settings) -> tuple[Batch, Judgements]:
    limits = Limits(
        image_format=engine.image_format,
        max_pixels=settings.max_pixels,
        max_instances=settings.max_instances,
    )
    try:
        async with asyncio.timeout(settings.request_timeout_seconds):
            batch = await engine.prepare(partial(decode, body, limits))
            return batch, await engine.screen(batch.images)
    except TimeoutError:
        raise DeadlineError(f"no answer within {settings.request_timeout_seconds:g} s, the limit") from None
