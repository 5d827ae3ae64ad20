"""The client's types are the service's: they are compared with its OpenAPI document, so that they cannot drift."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import TypeAdapter

from service.app import create_app
from service.client import answers
from service.client.answers import Problem
from service.settings import load_settings

SHAPES = ("Model", "DetectorSays", "Prediction", "Fault", "FailedPrediction", "PredictResponse", "Problem")
SHAPES_OF_MODELS = ("ModelVersion", "NamedModel", "Versions")
# What says how a value may be read, and not only what it means or which values the service promises to give.
STRUCTURE = frozenset({"type", "properties", "required", "items", "anyOf", "additionalProperties", "$ref", "enum"})


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return create_app(load_settings()).openapi()


def structure(schema: Any) -> Any:
    """A schema without what is not structure, references by the last part of their name."""
    if isinstance(schema, list):
        return sorted((structure(of) for of in schema), key=repr)
    if not isinstance(schema, dict):
        return schema.rpartition("/")[2] if isinstance(schema, str) else schema
    return {
        key: {name: structure(of) for name, of in value.items()} if key == "properties" else structure(value)
        for key, value in schema.items()
        if key in STRUCTURE
    }


def described(document: dict[str, Any]) -> set[str]:
    return {*SHAPES, *(SHAPES_OF_MODELS if "/v1/models" in document["paths"] else ())}


@pytest.mark.parametrize("name", [*SHAPES, *SHAPES_OF_MODELS])
def test_every_type_is_as_the_service_describes_it(name: str, document: dict[str, Any]) -> None:
    if name not in described(document):
        assert name not in document["components"]["schemas"]  # a service without versions describes none
        return
    adapter = TypeAdapter(getattr(answers, name))
    own = adapter.json_schema(mode="serialization")
    definition = own["$defs"][name] if "$ref" in own else own
    definition = {key: value for key, value in definition.items() if key != "additionalProperties"}
    assert structure(definition) == structure(document["components"]["schemas"][name])


def test_a_structure_that_differs_is_found_out(document: dict[str, Any]) -> None:
    schema = document["components"]["schemas"]["Prediction"]
    for changed in (
        {**schema, "required": schema["required"][1:]},
        {**schema, "properties": {**schema["properties"], "new": {"type": "string"}}},
        {**schema, "properties": {**schema["properties"], "label": {"type": "string"}}},
    ):
        assert structure(changed) != structure(schema)


def test_a_problem_knows_its_kind() -> None:
    raw = {"type": "urn:lgm-guard:problem:overloaded", "title": "T", "status": 503, "detail": "d", "error": "d"}
    problem = Problem.read({**raw, "errors": [{"field": "f", "detail": "d"}], "request_id": "r", "new": 1})
    assert problem.code == "overloaded"
    assert problem.errors == (answers.Fault(field="f", detail="d"),)


def test_the_client_loads_nothing_that_the_service_runs_on() -> None:
    heavy = {
        "torch",
        "torchvision",
        "fastapi",
        "starlette",
        "uvicorn",
        "pydantic",
        "safetensors",
        "prometheus_client",
    }
    code = (
        "import sys, service.client;"
        f"found = sorted(({heavy!r} | {{'model', 'detectors'}}) & set(sys.modules)); assert not found, found"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)
