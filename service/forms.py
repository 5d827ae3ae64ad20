"""The forms of a prediction's body: by content type, which decoding it gets."""

import asyncio
import time
from collections.abc import Callable
from functools import lru_cache, partial

from python_multipart.multipart import parse_options_header
from starlette.types import Receive

from service.compression import decompress
from service.deadlines import Deadline
from service.decoding import Batch, Limits, decode_file, decode_files, decode_json
from service.errors import (
    AbandonedError,
    DeadlineError,
    FieldFault,
    MalformedBodyError,
    SlowBodyError,
    UnsupportedMediaError,
)
from service.multipart import read_files

ACCEPTED = "image/* (an image file), multipart/form-data (field 'image'), application/json"
Decode = Callable[[bytes, Limits], Batch]


@lru_cache(maxsize=64)
def decoder_for(content_type: bytes, encoding: str = "") -> Decode:
    """encoding: as check_encoding gives it.

    Raises UnsupportedMediaError, and MalformedBodyError for multipart without boundary.
    """
    decode = _decoder_for(content_type)
    return partial(_decode_compressed, decode, encoding) if encoding else decode


def _decoder_for(content_type: bytes) -> Decode:
    media_type, options = parse_options_header(content_type)
    if media_type.startswith(b"image/"):
        return partial(decode_file, "body")
    if media_type == b"application/json":
        return decode_json
    if media_type == b"multipart/form-data":
        return partial(_decode_multipart, _boundary(options))
    given = media_type.decode("latin-1")[:64] or "none"
    raise UnsupportedMediaError(FieldFault("content-type", f"{given} is not taken; send {ACCEPTED}"))


async def read_body(receive: Receive, *, timeout_seconds: float, deadline: Deadline | None = None) -> bytes:
    """Raises SlowBodyError, DeadlineError where the caller's own comes first, AbandonedError."""
    callers = deadline.at if deadline is not None and deadline.is_callers else None
    try:
        async with asyncio.timeout(timeout_seconds if callers is None else callers - time.monotonic()):
            return await _read(receive)
    except TimeoutError:
        if callers is not None:
            raise DeadlineError("the body did not arrive before the deadline") from None
        raise SlowBodyError(FieldFault("body", f"did not arrive within {timeout_seconds:g} s, the limit")) from None


async def _read(receive: Receive) -> bytes:
    chunks: list[bytes] = []
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise AbandonedError("the caller has gone")
        chunks.append(message.get("body", b""))
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _decode_compressed(decode: Decode, encoding: str, body: bytes, limits: Limits) -> Batch:
    return decode(decompress(body, encoding, max_bytes=limits.max_body_bytes), limits)


def _boundary(options: dict[bytes, bytes]) -> bytes:
    boundary = options.get(b"boundary", b"")
    if not 0 < len(boundary) <= 70:
        raise MalformedBodyError(FieldFault("content-type", "multipart/form-data needs a boundary of 1 to 70 bytes"))
    return boundary


def _decode_multipart(boundary: bytes, body: bytes, limits: Limits) -> Batch:
    return decode_files(read_files(body, boundary, max_files=limits.max_instances), limits)
