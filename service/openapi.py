"""The OpenAPI document: what FastAPI derives, with the request forms' schemas, the problems and the keys."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.access import OPEN_PATHS
from service.inference_protocol.schemas import InferenceRequest
from service.problems import MEDIA_TYPE
from service.routes.quarantine import Review
from service.schemas import PredictRequest

COMPONENTS = "#/components/schemas/{model}"
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "An API key."},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key."},
}
REFUSALS = {
    "401": "No API key, or one that is not valid",
    "403": "The key's role does not suffice",
    "429": "Too many requests, or too fast; Retry-After says when to come back",
    "503": "Overloaded or not ready; Retry-After says when to come back",
}
PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS.format(model="Problem")}}}


def describe(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    for request in (PredictRequest, InferenceRequest, Review):
        schema = request.model_json_schema(ref_template=COMPONENTS)
        schemas.update(schema.pop("$defs", {}))
        schemas[request.__name__] = schema
    document["components"]["securitySchemes"] = KEYS
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _name_problems(operation["responses"])
            if path not in OPEN_PATHS:
                _name_refusals(operation)
    return document


def _name_refusals(operation: dict[str, Any]) -> None:
    operation["security"] = [{name: []} for name in KEYS] + [{}]  # none where no keys are set
    for status, description in REFUSALS.items():
        operation["responses"].setdefault(status, {"description": description, "content": PROBLEM})


def _name_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status >= "400" and "application/json" in response.get("content", {}):
            response["content"][MEDIA_TYPE] = response["content"].pop("application/json")
