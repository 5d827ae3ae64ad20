"""The forms of a prediction's body: by content type, which decoding it gets."""

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import Request
from python_multipart.multipart import parse_options_header

from service.decoding import Batch, Limits, decode_file, decode_files, decode_json
from service.errors import FieldFault, MalformedBodyError, SlowBodyError, UnsupportedMediaError
from service.multipart import read_files

ACCEPTED = "image/* (an image file), multipart/form-data (field 'image'), application/json"
Decode = Callable[[bytes, Limits], Batch]


def decoder_for(content_type: str) -> Decode:
    """Raises UnsupportedMediaError, and MalformedBodyError for multipart without boundary."""
    media_type, options = parse_options_header(content_type)
    if media_type.startswith(b"image/"):
        return partial(decode_file, "body")
    if media_type == b"application/json":
        return decode_json
    if media_type == b"multipart/form-data":
        return partial(_decode_multipart, _boundary(options))
    given = media_type.decode("latin-1")[:64] or "none"
    raise UnsupportedMediaError(FieldFault("content-type", f"{given} is not taken; send {ACCEPTED}"))


async def read_body(request: Request, *, timeout_seconds: float) -> bytes:
    try:
        async with asyncio.timeout(timeout_seconds):
            return await request.body()
    except TimeoutError:
        raise SlowBodyError(FieldFault("body", f"did not arrive within {timeout_seconds:g} s, the limit")) from None


def _boundary(options: dict[bytes, bytes]) -> bytes:
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise MalformedBodyError(FieldFault("content-type", "multipart/form-data needs a boundary of 1 to 70 bytes"))
    return boundary


def _decode_multipart(boundary: bytes, body: bytes, limits: Limits) -> Batch:
    return decode_files(read_files(body, boundary, max_files=limits.max_instances), limits)
