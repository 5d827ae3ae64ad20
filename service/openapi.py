"""The OpenAPI document: what FastAPI derives, with the request forms' schemas and the errors' media type."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.inference_protocol.schemas import InferenceRequest
from service.problems import MEDIA_TYPE
from service.schemas import PredictRequest

COMPONENTS = "#/components/schemas/{model}"


def describe(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    for request in (PredictRequest, InferenceRequest):
        schema = request.model_json_schema(ref_template=COMPONENTS)
        schemas.update(schema.pop("$defs"))
        schemas[request.__name__] = schema
    for operations in document["paths"].values():
        for operation in operations.values():
            _name_problems(operation["responses"])
    return document


def _name_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status >= "400" and "application/json" in response.get("content", {}):
            response["content"][MEDIA_TYPE] = response["content"].pop("application/json")
