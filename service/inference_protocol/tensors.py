"""Input tensors of the Open Inference Protocol -> images (n, c, h, w) in [0, 1]. Knows of no transport.

A tensor comes with its name, datatype and shape and, as its elements, a buffer, an array of numbers, or a JSON
array, flat or nested. What it claims is checked before anything of its size is made.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.images import ImageFormat
from service.decoding import told
from service.errors import FieldFault, InvalidImagesError, InvalidInputError
from service.judgements import Floats

IMAGES = "images"
Buffer = bytes | memoryview


@dataclass(frozen=True, slots=True)
class Datatype:
    """How elements lie in a buffer, what JSON may hold for them, and the greatest: 1 in the image's unit."""

    dtype: np.dtype[Any]
    json_types: frozenset[type]
    numbers: str
    greatest: int


DATATYPES = {
    "FP32": Datatype(np.dtype("<f4"), frozenset({float, int}), "numbers", 1),
    "UINT8": Datatype(np.dtype("u1"), frozenset({int}), "whole numbers", 255),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class InputTensor:
    """One input as it was sent; `field` is its place in the request, for faults."""

    field: str
    name: str
    datatype: str
    shape: Sequence[int]
    data: Buffer | NDArray[Any] | list[Any]

    def wrong(self, part: str, detail: str) -> InvalidInputError:
        return InvalidInputError(FieldFault(f"{self.field}.{part}", detail))


def images_of(inputs: Sequence[InputTensor], image_format: ImageFormat, *, max_instances: int) -> Floats:
    """The images of a request. Raises InvalidInputError naming the field, or each bad image by its position."""
    tensor = _only(inputs)
    if tensor.datatype not in DATATYPES:
        raise tensor.wrong("datatype", f"{tensor.datatype[:64]!r} is not taken; send {' or '.join(DATATYPES)}")
    datatype = DATATYPES[tensor.datatype]
    elements = _elements(tensor, datatype, _shape(tensor, image_format, max_instances))
    _check_range(elements, datatype)
    return _to_unit(elements, datatype)


def _only(inputs: Sequence[InputTensor]) -> InputTensor:
    if not inputs:
        raise InvalidInputError(FieldFault("inputs", f"no input given; this model takes {IMAGES!r}"))
    for position, tensor in enumerate(inputs):
        if tensor.name != IMAGES:
            raise tensor.wrong("name", f"unknown input {tensor.name[:64]!r}; this model takes {IMAGES!r}")
        if position > 0:
            raise tensor.wrong("name", f"{IMAGES!r} is given twice")
    return inputs[0]


def _shape(tensor: InputTensor, image_format: ImageFormat, max_instances: int) -> tuple[int, ...]:
    shape = tuple(tensor.shape[:8])
    expected = f"this model takes [n, {', '.join(map(str, image_format.shape))}] with n from 1 to {max_instances}"
    if shape[1:] != image_format.shape:
        raise tensor.wrong("shape", f"is {list(shape)}; {expected}")
    if not 1 <= shape[0] <= max_instances:
        raise tensor.wrong("shape", f"{shape[0]} images; {expected}")
    return shape


def _elements(tensor: InputTensor, datatype: Datatype, shape: tuple[int, ...]) -> NDArray[Any]:
    if isinstance(tensor.data, list):
        return _from_json(tensor, datatype, shape).reshape(shape)
    if isinstance(tensor.data, np.ndarray):
        _check_number(tensor, len(tensor.data), shape)
        return tensor.data.reshape(shape)
    expected = prod(shape) * datatype.dtype.itemsize
    if len(tensor.data) != expected:
        raise tensor.wrong(
            "data", f"{len(tensor.data)} bytes; {tensor.datatype} of shape {list(shape)} takes {expected}"
        )
    return np.frombuffer(tensor.data, datatype.dtype).reshape(shape)


def _from_json(tensor: InputTensor, datatype: Datatype, shape: tuple[int, ...]) -> NDArray[np.float64]:
    elements = _row_major(tensor, shape)
    if not set(map(type, elements)) <= datatype.json_types:
        position = next(row for row, element in enumerate(elements) if type(element) not in datatype.json_types)
        raise tensor.wrong(
            "data", f"element {position} is none of the {datatype.numbers} that {tensor.datatype} takes"
        )
    try:
        return np.array(elements, dtype=np.float64)
    except OverflowError:
        raise tensor.wrong("data", f"values must lie in [0, {datatype.greatest}]; one is beyond any float") from None


def _row_major(tensor: InputTensor, shape: tuple[int, ...]) -> list[Any]:
    """The elements of a flat or nested array; a nested one must have the shape."""
    assert isinstance(tensor.data, list)
    if not (tensor.data and isinstance(tensor.data[0], list)):
        _check_number(tensor, len(tensor.data), shape)
        return tensor.data
    level: list[Any] = [tensor.data]
    for axis, length in enumerate(shape):
        if any(type(row) is not list or len(row) != length for row in level):
            raise tensor.wrong("data", f"nested arrays must have the shape {list(shape)}; axis {axis} has not")
        level = list(chain.from_iterable(level))
    return level


def _check_number(tensor: InputTensor, number: int, shape: tuple[int, ...]) -> None:
    if number != prod(shape):
        raise tensor.wrong("data", f"{number} elements; the shape {list(shape)} takes {prod(shape)}")


def _check_range(elements: NDArray[Any], datatype: Datatype) -> None:
    """NaN lies in no range, so that it is found too."""
    if elements.min() >= 0 and elements.max() <= datatype.greatest:
        return
    rows = elements.reshape(len(elements), -1)
    extremes = zip(rows.min(axis=1), rows.max(axis=1), strict=True)
    raise InvalidImagesError(
        *(
            FieldFault(f"{IMAGES}[{position}]", _outside(low, high, datatype.greatest))
            for position, (low, high) in enumerate(extremes)
            if not (low >= 0 and high <= datatype.greatest)
        )
    )


def _to_unit(elements: NDArray[Any], datatype: Datatype) -> Floats:
    if datatype.greatest == 1:
        return elements.astype(np.float32, copy=False)
    images: Floats = np.divide(elements, np.float32(datatype.greatest), dtype=np.float32)
    return images


def _outside(low: float, high: float, greatest: int) -> str:
    if not np.isfinite(low) or not np.isfinite(high):
        return "values must be finite; NaN and Infinity are not"
    if low < 0:
        return f"values must lie in [0, {greatest}]; the least is {low:.6g}"
    hint = "divide by 255, or send UINT8; " if greatest == 1 and high >= 2 else ""
    return f"values must lie in [0, {greatest}]; {hint}the greatest is {told(high)}"
