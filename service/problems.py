"""Errors -> application/problem+json: the one table of statuses."""

from collections.abc import Iterable, Sequence
from functools import partial
from http import HTTPStatus

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Route
from starlette.types import Scope

from service import errors
from service.errors import FieldFault, RequestError, ServiceError
from service.runtime import Runtime

MEDIA_TYPE = "application/problem+json"
CLIENT_CLOSED_REQUEST = 499

STATUSES: dict[type[ServiceError], int] = {
    errors.MalformedBodyError: 400,
    errors.UnauthenticatedError: 401,
    errors.ForbiddenError: 403,
    errors.UnknownModelError: 404,
    errors.UnknownItemError: 404,
    errors.SlowBodyError: 408,
    errors.ActivationError: 409,
    errors.TransitionError: 409,
    errors.ChangedMeanwhileError: 412,
    errors.BodyTooLargeError: 413,
    errors.UnsupportedMediaError: 415,
    errors.InvalidInputError: 422,
    errors.InvalidImagesError: 422,
    errors.InvalidParametersError: 422,
    errors.MissingPreconditionError: 428,
    errors.TooManyRequestsError: 429,
    errors.RateLimitedError: 429,
    errors.AbandonedError: CLIENT_CLOSED_REQUEST,
    errors.InferenceError: 500,
    errors.WorkerDiedError: 500,
    errors.OverloadedError: 503,
    errors.NotReadyError: 503,
    errors.QuarantineUnavailableError: 503,
    errors.DeadlineError: 504,
}


def add_handlers(app: FastAPI, runtime: Runtime, routes: Sequence[Route]) -> None:
    """routes: all that there are; the framework tells the methods of the first alone that has the path."""

    def on_service_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, ServiceError)
        return answer_error(request.scope, error, runtime)

    def on_disconnect(request: Request, error: Exception) -> Response:
        return answer_error(request.scope, errors.AbandonedError("the caller has gone"), runtime)

    def on_invalid_request(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        faults = errors.faults_of({**found, "loc": found["loc"][1:]} for found in error.errors())
        return answer_error(request.scope, errors.InvalidParametersError(*faults), runtime)

    app.add_exception_handler(ServiceError, on_service_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, partial(_on_http_error, routes))
    app.add_exception_handler(ClientDisconnect, on_disconnect)


def answer_error(scope: Scope, error: ServiceError, runtime: Runtime) -> Response:
    """The problem, counted."""
    count(runtime, error)
    return of_service_error(scope, error)


def count(runtime: Runtime, error: ServiceError) -> None:
    runtime.metrics.rejected.labels(error.code).inc()
    if isinstance(error, errors.InvalidImagesError):
        runtime.metrics.images.labels("rejected").inc(len(error.faults))


def of_service_error(scope: Scope, error: ServiceError) -> Response:
    status = STATUSES[type(error)]
    faults = error.faults if isinstance(error, RequestError) else ()
    headers = {"Retry-After": str(error.retry_after_seconds)} if status in (429, 503) else {}
    return problem(scope, status, str(error), code=error.code, faults=faults, headers=headers)


def internal_error(scope: Scope) -> Response:
    """Says nothing of what happened; the log does, under the request's id."""
    return problem(scope, 500, "internal error; the log has it under this request_id", code="internal-error")


def problem(
    scope: Scope,
    status: int,
    detail: str,
    *,
    code: str,
    faults: Iterable[FieldFault] = (),
    headers: dict[str, str] | None = None,
) -> Response:
    body = problem_body(status, detail, code=code, faults=faults, request_id=scope["state"]["request_id"])
    return Response(body, status, headers, MEDIA_TYPE)


def problem_body(status: int, detail: str, *, code: str, request_id: str, faults: Iterable[FieldFault] = ()) -> bytes:
    """RFC 9457's members, `error` for clients of the Open Inference Protocol, and which fields are at fault."""
    return to_json(
        {
            "type": f"urn:lgm-guard:problem:{code}",
            "title": "Client Closed Request" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
            "error": detail,
            "errors": [{"field": fault.field, "detail": fault.detail} for fault in faults],
            "request_id": request_id,
        }
    )


def _on_http_error(routes: Sequence[Route], request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_methods_of(request.scope["path"], routes))
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "-")
    detail = {404: "no such route", 405: "this route does not take this method"}.get(
        error.status_code, str(error.detail)
    )
    return problem(request.scope, error.status_code, detail, code=code, headers=headers)


def _methods_of(path: str, routes: Sequence[Route]) -> list[str]:
    return sorted({method for route in routes if route.path_regex.match(path) for method in route.methods or ()})
