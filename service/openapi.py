"""The OpenAPI document: what FastAPI derives, with request forms, problems, keys and headers."""

from collections.abc import Iterable, Mapping
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


def _header(description: str, kind: str = "string") -> dict[str, Any]:
    return {"description": description, "schema": {"type": kind}}


TAKEN = {
    "X-Request-ID": _header("Taken over where it is 1 to 64 of A-Z a-z 0-9 . _ -, else one is made."),
    "traceparent": _header("W3C Trace Context; a valid one is taken over."),
}
TOLD = {
    "X-Request-ID": _header("The request's id, also in the log."),
    "traceparent": _header("Where the request had one, or traces are exported."),
}
TOLD_OF_LIMITS = {
    "RateLimit-Policy": _header("Where a rate limit is set: quota, and window in seconds."),
    "RateLimit": _header("Likewise: what remains, and the seconds until all is there again."),
}
CHALLENGE = {"WWW-Authenticate": _header("How a key is sent.")}
RETRY = {"Retry-After": _header("Seconds until it is worth another try.", "integer")}
TOLD_BY_STATUS = {"401": CHALLENGE, "429": RETRY, "503": RETRY}
PROBLEM = {MEDIA_TYPE: {"schema": {"$ref": COMPONENTS.format(model="Problem")}}}


def describe(app: FastAPI) -> dict[str, Any]:
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    schemas = document["components"]["schemas"]
    for request in (PredictRequest, InferenceRequest, Review):
        schema = request.model_json_schema(ref_template=COMPONENTS)
        schemas.update(schema.pop("$defs", {}))
        schemas[request.__name__] = schema
    document["components"]["securitySchemes"] = KEYS
    parameters = {name: {"name": name, "in": "header", **header} for name, header in TAKEN.items()}
    document["components"]["parameters"] = parameters
    document["components"]["headers"] = TOLD | TOLD_OF_LIMITS | CHALLENGE | RETRY
    for path, operations in document["paths"].items():
        for operation in operations.values():
            _name_problems(operation["responses"])
            if path not in OPEN_PATHS:
                _name_refusals(operation)
            _name_headers(operation, TOLD if path in OPEN_PATHS else TOLD | TOLD_OF_LIMITS)
    return document


def _name_refusals(operation: dict[str, Any]) -> None:
    operation["security"] = [{name: []} for name in KEYS] + [{}]  # none where no keys are set
    for status, description in REFUSALS.items():
        operation["responses"].setdefault(status, {"description": description, "content": PROBLEM})


def _name_headers(operation: dict[str, Any], told: Mapping[str, Any]) -> None:
    operation["parameters"] = [*operation.get("parameters", ()), *_references("parameters", TAKEN).values()]
    for status, response in operation["responses"].items():
        names = (*told, *TOLD_BY_STATUS.get(status, ()))
        response["headers"] = {**response.get("headers", {}), **_references("headers", names)}


def _name_problems(responses: dict[str, Any]) -> None:
    for status, response in responses.items():
        if status >= "400" and "application/json" in response.get("content", {}):
            response["content"][MEDIA_TYPE] = response["content"].pop("application/json")


def _references(kind: str, names: Iterable[str]) -> dict[str, dict[str, str]]:
    return {name: {"$ref": f"#/components/{kind}/{name}"} for name in names}
