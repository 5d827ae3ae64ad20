"""The Open Inference Protocol in its binary form: images as one tensor, answers as several.

Legend: n images, k classes, e detectors.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from service.client.answers import DetectorSays, Model, Prediction
from service.client.images import Array

HEADER_LENGTH = "inference-header-content-length"
DATATYPES = {"INT64": "<i8", "FP32": "<f4", "BOOL": "?"}
WITHHELD = -1


@dataclass(frozen=True, kw_only=True, slots=True)
class Description:
    """A version of a model: the shape (c, h, w) of its images, what the columns of its outputs mean."""

    model: Model
    shape: tuple[int, ...]
    labels: tuple[str, ...]
    detectors: tuple[str, ...]

    @classmethod
    def read(cls, model: Model, raw: Mapping[str, Any]) -> "Description":
        """From the model's metadata, where columns are a JSON text, parameters being scalars."""
        columns = {
            of["name"]: tuple(json.loads(of["parameters"]["columns"]))
            for of in raw["outputs"]
            if "columns" in of.get("parameters", {})
        }
        return cls(
            model=model,
            shape=tuple(raw["inputs"][0]["shape"][1:]),
            labels=columns["probabilities"],
            detectors=columns["evidence_scores"],
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """One answer: its tensors by name."""

    model: Model
    tensors: dict[str, Array]


def encode(images: Array) -> tuple[bytes, int]:
    """The body for images (n, c, h, w), and how much of it is JSON."""
    tensor = {
        "name": "images",
        "datatype": "UINT8" if images.dtype == np.uint8 else "FP32",
        "shape": images.shape,
        "parameters": {"binary_data_size": images.nbytes},
    }
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    return b"".join([header, images.data]), len(header)


def decode(response: httpx.Response) -> Outputs:
    length = int(response.headers[HEADER_LENGTH])
    header, binary = json.loads(response.content[:length]), memoryview(response.content)[length:]
    tensors: dict[str, Array] = {}
    start = 0
    for output in header["outputs"]:
        stop = start + output["parameters"]["binary_data_size"]
        values = np.frombuffer(binary[start:stop], DATATYPES[output["datatype"]])
        tensors[output["name"]] = values.reshape(output["shape"])
        start = stop
    model = Model(name=header["model_name"], version=header["model_version"])
    return Outputs(model=model, tensors=tensors)


def predictions(outputs: Outputs, description: Description, *, count: int) -> tuple[Prediction, ...]:
    """One for each image. Raises ValueError where the answer is of another number."""
    tensors = outputs.tensors
    columns = (
        tensors["class_index"].tolist(),
        tensors["probabilities"].max(axis=1).tolist(),
        tensors["log_likelihood"].tolist(),
        tensors["p_value"].tolist(),
        tensors["flagged"].tolist(),
        tensors["evidence_scores"].tolist(),
        tensors["evidence_p_values"].tolist(),
    )
    if len(columns[0]) != count:
        raise ValueError(f"{len(columns[0])} rows came for {count} images")
    return tuple(_prediction(description, *row) for row in zip(*columns, strict=True))


def _prediction(
    description: Description,
    class_index: int,
    probability: float,
    log_likelihood: float,
    p_value: float,
    flagged: bool,
    scores: list[float],
    p_values: list[float],
) -> Prediction:
    says = (DetectorSays(score=score, p_value=of) for score, of in zip(scores, p_values, strict=True))
    withheld = class_index == WITHHELD
    return Prediction(
        label=None if withheld else description.labels[class_index],
        class_index=None if withheld else class_index,
        probability=None if withheld else probability,
        log_likelihood=log_likelihood,
        p_value=p_value,
        flagged=flagged,
        evidence=dict(zip(description.detectors, says, strict=True)),
    )
