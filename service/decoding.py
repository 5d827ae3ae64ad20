"""Bytes -> images (n, c, h, w) in [0, 1], each checked alone, so that a bad one fails alone.

Nothing here knows of HTTP. All of it runs on the decoding pool.
"""

import base64
import binascii
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

import numpy as np
from pydantic import FailFast, Strict, TypeAdapter, ValidationError
from pydantic_core import from_json

from model.errors import ImageError
from model.images import ImageFormat, decode_pixels
from service.errors import FieldFault, InvalidImagesError, InvalidInputError, MalformedBodyError
from service.judgements import Floats

Raw = TypeVar("Raw")

Number = Annotated[float, Strict()]
Row = Annotated[list[Number], FailFast(), Strict()]
Plane = Annotated[list[Row], FailFast(), Strict()]
NESTED = TypeAdapter(Annotated[list[Plane], FailFast(), Strict()])


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    image_format: ImageFormat
    max_pixels: int
    max_instances: int
    max_body_bytes: int


@dataclass(frozen=True, slots=True)
class Batch:
    """The good images of a request, stacked in order, and the faults of the others by position."""

    size: int
    images: Floats
    faults: Mapping[int, FieldFault]


def decode_file(field: str, data: bytes, limits: Limits) -> Batch:
    return _gather([(field, data)], lambda raw: _from_file(raw, limits))


def decode_files(files: list[tuple[str, bytes]], limits: Limits) -> Batch:
    _check_number("image", len(files), limits.max_instances)
    return _gather(files, lambda raw: _from_file(raw, limits))


def decode_json(body: bytes, limits: Limits) -> Batch:
    """{"instances": [...]}, each a nested array (c, h, w) or {"b64": "..."}."""
    try:
        content = from_json(body)
    except ValueError as error:
        raise MalformedBodyError(FieldFault("body", f"not JSON: {error}")) from None
    instances = _instances(content)
    _check_number("instances", len(instances), limits.max_instances)
    named = ((f"instances[{position}]", raw) for position, raw in enumerate(instances))
    return _gather(named, lambda raw: _from_instance(raw, limits))


def _instances(content: Any) -> list[Any]:
    if not isinstance(content, dict):
        raise InvalidInputError(FieldFault("body", 'must be an object {"instances": [...]}'))
    unknown = [key for key in content if key != "instances"]
    if unknown:
        raise InvalidInputError(FieldFault(unknown[0][:64], 'unknown key; only "instances" is read'))
    instances = content.get("instances")
    if not isinstance(instances, list):
        raise InvalidInputError(FieldFault("instances", "must be an array of images"))
    return instances


def _check_number(field: str, number: int, limit: int) -> None:
    if number == 0:
        raise InvalidInputError(FieldFault(field, f"no image given; send 1 to {limit}"))
    if number > limit:
        raise InvalidInputError(FieldFault(field, f"{number} images given; the limit is {limit}"))


def _gather(named: Iterable[tuple[str, Raw]], decode: Callable[[Raw], Floats]) -> Batch:
    images: list[Floats] = []
    faults: dict[int, FieldFault] = {}
    for position, (field, raw) in enumerate(named):
        try:
            images.append(decode(raw))
        except ImageError as error:
            faults[position] = FieldFault(field, str(error))
    if not images:
        raise InvalidImagesError(*faults.values())
    return Batch(len(images) + len(faults), images[0][np.newaxis] if len(images) == 1 else np.stack(images), faults)


def _from_file(data: bytes, limits: Limits) -> Floats:
    pixels = decode_pixels(data, limits.image_format, max_pixels=limits.max_pixels)
    image: Floats = np.divide(pixels, 255, dtype=np.float32)
    return image


def _from_instance(raw: Any, limits: Limits) -> Floats:
    if isinstance(raw, dict):
        return _from_file(_from_base64(raw), limits)
    if isinstance(raw, list):
        return _from_nested(raw, limits.image_format)
    raise ImageError('must be a nested array of numbers in [0, 1] or {"b64": "..."}')


def _from_base64(raw: dict[str, Any]) -> bytes:
    text = raw.get("b64")
    if set(raw) != {"b64"} or not isinstance(text, str):
        raise ImageError('an object must be {"b64": "..."}, the base64 of an image file')
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError(f"b64 is not base64: {error}") from None


def _from_nested(raw: list[Any], image_format: ImageFormat) -> Floats:
    channels, height, width = image_format.shape
    expected = f"this model takes ({channels}, {height}, {width}): channels, height, width"
    try:
        array = np.asarray(NESTED.validate_python(raw), dtype=np.float64)
    except ValidationError as error:
        raise ImageError(f"{_first_problem(error)}; {expected}") from None
    except ValueError:
        raise ImageError(f"rows or channels differ in length; {expected}") from None
    if array.shape != image_format.shape:
        raise ImageError(f"has shape {array.shape}; {expected}")
    _check_range(array)
    return array.astype(np.float32)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = "".join(f"[{index}]" for index in problem["loc"])
    return f"not an array of numbers (at {where or 'the top'}: {problem['msg']})"


def _check_range(array: np.ndarray) -> None:
    low, high = array.min(), array.max()
    if not np.isfinite(low) or not np.isfinite(high):
        raise ImageError("values must be finite; NaN and Infinity are not")
    if low < 0:
        raise ImageError(f"values must lie in [0, 1]; the least is {low:.6g}")
    if high > 1:
        hint = "divide by 255; " if high >= 2 else ""
        raise ImageError(f"values must lie in [0, 1]; {hint}the greatest is {told(high)}")


def told(value: float) -> str:
    """One of numpy's, in as many digits as tell it apart from every other value: 1.0000001 is not 1."""
    return str(value).removesuffix(".0")
