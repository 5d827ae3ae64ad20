"""How each server wants the same images and says the same verdicts: bodies out, rows of numbers back."""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from model.image_set import to_unit

BOUNDARY = "lgm-benchmark"
HEADER_LENGTH = "Inference-Header-Content-Length"


class Said(NamedTuple):
    """What is compared of one image's verdict."""

    class_index: int
    log_likelihood: float
    p_value: float


class Answer(NamedTuple):
    """An HTTP answer's body, and how many of its bytes are JSON where the rest is tensors."""

    body: bytes
    json_bytes: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """A request of images (n, c, h, w) uint8, and how its answer is read."""

    told: str
    path: str
    headers: dict[str, str]
    encode: Callable[[Tensor], bytes]
    decode: Callable[[Answer], list[Said]]

    def bodies(self, images: Tensor, *, size: int) -> list[bytes]:
        """A body for each full run of that many images."""
        return [self.encode(chunk) for chunk in images.split(size) if len(chunk) == size]


def png(image: Tensor) -> bytes:
    """One uint8 image (c, h, w), grey or colour, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).squeeze(2).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def pixels(images: Tensor) -> bytes:
    """Images (n, c, h, w) as row-major float32 in [0, 1]."""
    return to_unit(images).numpy().tobytes()


def png_file(path: str) -> Form:
    """The file as the body; a JSON answer."""
    return Form(
        told="a PNG file",
        path=path,
        headers={"Content-Type": "image/png"},
        encode=lambda images: png(images[0]),
        decode=read_predictions,
    )


def raw_pixels(path: str) -> Form:
    """Float32 as the body; a JSON answer."""
    return Form(
        told="raw float32, JSON back",
        path=path,
        headers={"Content-Type": "application/octet-stream"},
        encode=pixels,
        decode=read_predictions,
    )


def png_files(path: str) -> Form:
    """A form of PNG files; a JSON answer."""
    return Form(
        told="a form of PNG files, JSON back",
        path=path,
        headers={"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"},
        encode=_multipart,
        decode=read_predictions,
    )


def base64_json(path: str, *, told: str, encode: Callable[[Tensor], bytes]) -> Form:
    """The Open Inference Protocol's JSON: a BYTES element in base64 for each image; tensors back."""
    return Form(
        told=told,
        path=path,
        headers={"Content-Type": "application/json"},
        encode=lambda images: _bytes_elements([encode(image) for image in images.split(1)]),
        decode=read_tensors,
    )


def binary_tensors(path: str, *, size: int, shape: tuple[int, ...]) -> Form:
    """The Open Inference Protocol's binary form, both ways, of always as many images."""
    tensor = {
        "name": "images",
        "shape": [size, *shape],
        "datatype": "FP32",
        "parameters": {"binary_data_size": 4 * size * int(np.prod(shape))},
    }
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return Form(
        told="protocol's binary tensors",
        path=path,
        headers={"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))},
        encode=lambda images: head + pixels(images),
        decode=read_tensors,
    )


def read_predictions(answer: Answer) -> list[Said]:
    """{"predictions": [...]} or nested lists of them."""
    found = json.loads(answer.body)
    predictions = found["predictions"] if isinstance(found, dict) else found
    while isinstance(predictions[0], list):
        predictions = [prediction for inner in predictions for prediction in inner]
    return [Said(*(prediction[name] for name in Said._fields)) for prediction in predictions]


def read_tensors(answer: Answer) -> list[Said]:
    """The protocol's outputs, in JSON or binary."""
    head = json.loads(answer.body[: answer.json_bytes])
    start = answer.json_bytes or len(answer.body)
    columns: dict[str, list[Any]] = {}
    for output in head["outputs"]:
        size = output.get("parameters", {}).get("binary_data_size")
        if size is None:
            columns[output["name"]] = output["data"]
        else:
            kind = {"INT64": np.int64, "FP32": np.float32, "BOOL": np.bool_}[output["datatype"]]
            columns[output["name"]] = np.frombuffer(answer.body[start : start + size], kind).tolist()
            start += size
    return [Said(*row) for row in zip(*(columns[name] for name in Said._fields), strict=True)]


def _multipart(images: Tensor) -> bytes:
    head = 'Content-Disposition: form-data; name="image"; filename="image.png"\r\nContent-Type: image/png'
    parts = [f"--{BOUNDARY}\r\n{head}\r\n\r\n".encode() + png(image) + b"\r\n" for image in images]
    return b"".join(parts) + f"--{BOUNDARY}--\r\n".encode()


def _bytes_elements(elements: list[bytes]) -> bytes:
    tensor = {
        "name": "images",
        "shape": [len(elements), 1],
        "datatype": "BYTES",
        "parameters": {"content_type": "base64"},
        "data": [base64.b64encode(element).decode() for element in elements],
    }
    return json.dumps({"inputs": [tensor]}).encode()
