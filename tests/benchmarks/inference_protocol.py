"""What the Open Inference Protocol costs the HTTP process: reading a request's images and writing its answer.

    python -m tests.benchmarks.inference_protocol [--images 64]

Microseconds, the least of 7 rounds of 20; the copy of the images' bytes stands beside them.
"""

import json
import timeit
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Annotated, Any, cast

import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table

from detectors import SHIPPED_BUNDLE, load_bundle
from service.engine import Engine
from service.inference_protocol import grpc_messages, messages, rest
from service.judgements import Judgements

ROUNDS, CALLS = 7, 20
ModelInferRequest = messages.REQUESTS["ModelInfer"]


def microseconds(call: Callable[[], object]) -> str:
    return f"{1e6 * min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS:.0f}"


def rest_request(images: np.ndarray, *, binary: bool) -> tuple[bytes, rest.Form]:
    tensor = {"name": "images", "datatype": "FP32", "shape": images.shape}
    content = {"parameters": {"binary_data_size": images.nbytes}} if binary else {"data": images.ravel().tolist()}
    header = json.dumps({"inputs": [tensor | content], "parameters": {"binary_data_output": binary}}).encode()
    return header + (images.tobytes() if binary else b""), rest.Form(encoding="", header_length=len(header))


def grpc_request(images: np.ndarray, *, raw: bool) -> bytes:
    tensor: dict[str, Any] = {"name": "images", "datatype": "FP32", "shape": images.shape}
    if raw:
        request = ModelInferRequest(model_name="mnist", inputs=[tensor], raw_input_contents=[images.tobytes()])
    else:
        tensor["contents"] = {"fp32_contents": images.ravel()}
        request = ModelInferRequest(model_name="mnist", inputs=[tensor])
    return cast(bytes, request.SerializeToString())


def main(images: Annotated[int, typer.Option(help="Images in a request.")] = 64) -> None:
    """Time of reading and of writing, for both transports and both forms."""
    screener = load_bundle(SHIPPED_BUNDLE)
    floats = np.random.default_rng(0).random((images, *screener.image_format.shape), np.float32)
    judgements = Judgements.of(screener.screen(torch.from_numpy(floats)))
    engine = cast(Engine, SimpleNamespace(name=screener.name, version=screener.version))
    table = Table("form", "reading", "writing", title=f"{images} images, {floats.nbytes} bytes of FP32, microseconds")
    table.add_row("copy of the images' bytes", microseconds(partial(np.copy, floats)), "")
    for binary in (True, False):
        body, form = rest_request(floats, binary=binary)
        limits = {"max_body_bytes": len(body), "max_instances": images}
        read = partial(rest.decode, body, form, screener.image_format, **limits)
        write = partial(rest.encode, engine, read(), judgements)
        table.add_row("REST, binary" if binary else "REST, JSON", microseconds(read), microseconds(write))
    for raw in (True, False):
        message = grpc_request(floats, raw=raw)
        read = partial(_read_message, message, screener.image_format, images)
        write = partial(_write_message, engine, read(), judgements)
        table.add_row("gRPC, raw" if raw else "gRPC, typed", microseconds(read), microseconds(write))
    Console(width=110).print(table)


def _read_message(message: bytes, image_format: Any, images: int) -> Any:
    return grpc_messages.decode(grpc_messages.parse(ModelInferRequest, message), image_format, max_instances=images)


def _write_message(engine: Engine, inference: Any, judgements: Judgements) -> Any:
    return grpc_messages.encode(engine, inference, judgements).SerializeToString()


if __name__ == "__main__":
    typer.run(main)
