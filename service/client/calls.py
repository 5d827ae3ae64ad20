"""Requests and the reading of answers, one function a route. Each yields calls and is sent their responses,
so that the sync and the async client have one way of speaking and differ only in who waits.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, TypeVar
from urllib.parse import quote

import httpx

from service.client import open_inference
from service.client.answers import FailedPrediction, Fault, Model, Prediction, PredictResponse, Problem, Versions
from service.client.errors import AnswerError, InputError, ProblemError
from service.client.parts import FilePart, Part, TensorPart
from service.client.transports import by_proxy

Result = TypeVar("Result")
REQUEST_ID = "x-request-id"
BAD_IMAGE_STATUSES = frozenset({HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY})
MISSHAPEN = (KeyError, TypeError, ValueError, AttributeError, IndexError, RecursionError)


@dataclass(frozen=True, kw_only=True, slots=True)
class Call:
    """One request, without what every one has: address, key, deadline.

    retried: whether it is ever sent again. repeatable: whether doing it twice is as doing it once.
    """

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    content: bytes | None = None
    files: list[tuple[str, tuple[str, bytes]]] | None = None
    retried: bool = True
    repeatable: bool = True


Conversation = Generator[Call, httpx.Response, Result]


@dataclass(slots=True)
class Known:
    """What a client remembers of the model that serves: its name, its images' shape, its columns' names.

    Before it leads to a refusal, it is asked for anew: another may have been activated.
    """

    serving: open_inference.Description | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PartAnswer:
    """What is said of one part's images, in order. No model where all were refused, no id where none was sent."""

    predictions: tuple[Prediction | FailedPrediction, ...]
    model: Model | None
    request_id: str | None


def ready() -> Conversation[Model | None]:
    response = yield Call(method="GET", path="/readyz", retried=False)
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        return None
    return _read_json(response, _model_of)


def models() -> Conversation[Versions]:
    return _read_json((yield Call(method="GET", path="/v1/models")), Versions.read)


def activate(name: str, version: str) -> Conversation[Model]:
    path = f"/v1/models/{_quoted(name)}/versions/{_quoted(version)}/activate"
    return _read_json((yield Call(method="POST", path=path)), Model.read)


def roll_back(name: str) -> Conversation[Model]:
    path = f"/v1/models/{_quoted(name)}/rollback"
    return _read_json((yield Call(method="POST", path=path, repeatable=False)), Model.read)


def predict(part: Part, known: Known, *, request_id: str) -> Conversation[PartAnswer]:
    if isinstance(part, FilePart):
        return (yield from _predict_files(part, request_id))
    return (yield from _predict_tensors(part, known, request_id))


def _predict_files(part: FilePart, request_id: str) -> Conversation[PartAnswer]:
    files = [("image", (str(row), file.content)) for row, file in enumerate(part.files)]
    response = yield Call(method="POST", path="/v1/predict", headers={REQUEST_ID: request_id}, files=files)
    sources = [file.source for file in part.files]
    if (refused := _refused_images(response, "image", sources)) is not None:
        return refused
    answer = _read_json(response, PredictResponse.read)
    if len(answer.predictions) != len(sources):
        raise AnswerError(f"{len(answer.predictions)} predictions came for {len(sources)} images")
    named = (_named(of, source) for of, source in zip(answer.predictions, sources, strict=True))
    return PartAnswer(predictions=tuple(named), model=answer.model, request_id=answer.request_id)


def _predict_tensors(part: TensorPart, known: Known, request_id: str) -> Conversation[PartAnswer]:
    sources = [tensor.source for tensor in part.tensors]
    remembered = known.serving
    serving = remembered or (yield from _serving(known))
    response = yield from _infer_where_it_fits(part, serving, request_id)
    if remembered and (response is None or response.status_code == HTTPStatus.NOT_FOUND):
        serving = yield from _serving(known)
        if serving != remembered:
            response = yield from _infer_where_it_fits(part, serving, request_id)
    if response is None:
        failed = tuple(
            _failed(source, f"has shape {part.shape}; this model takes {serving.shape}") for source in sources
        )
        return PartAnswer(predictions=failed, model=None, request_id=None)
    if (refused := _refused_images(response, "images", sources)) is not None:
        return refused
    outputs = _read(response, open_inference.decode)
    if outputs.model != serving.model:
        serving = known.serving = yield from _describe(outputs.model)
    predictions = _checked(response, lambda: open_inference.predictions(outputs, serving, count=len(sources)))
    request_id = response.headers.get(REQUEST_ID, request_id)
    return PartAnswer(predictions=predictions, model=outputs.model, request_id=request_id)


def _infer_where_it_fits(
    part: TensorPart, serving: open_inference.Description, request_id: str
) -> Conversation[httpx.Response | None]:
    return (yield _infer(part, serving.model.name, request_id)) if part.shape == serving.shape else None


def _infer(part: TensorPart, name: str, request_id: str) -> Call:
    content, header_length = open_inference.encode(part.stacked())
    headers = {
        REQUEST_ID: request_id,
        "content-type": "application/octet-stream",
        open_inference.HEADER_LENGTH: str(header_length),
    }
    return Call(method="POST", path=f"/v2/models/{_quoted(name)}/infer", headers=headers, content=content)


def _serving(known: Known) -> Conversation[open_inference.Description]:
    model = _read_json((yield Call(method="GET", path="/readyz")), _model_of)
    if known.serving is None or known.serving.model != model:
        known.serving = yield from _describe(model)
    return known.serving


def _describe(model: Model) -> Conversation[open_inference.Description]:
    path = f"/v2/models/{_quoted(model.name)}/versions/{_quoted(model.version)}"
    response = yield Call(method="GET", path=path)
    return _read_json(response, lambda raw: open_inference.Description.read(model, raw))


def _refused_images(response: httpx.Response, field: str, sources: list[str]) -> PartAnswer | None:
    """A refusal that speaks of every single image, or of the only one there is, as values in their places."""
    if response.status_code not in BAD_IMAGE_STATUSES:
        return None
    problem = _problem(response)
    told = {fault.field: fault.detail for fault in problem.errors}
    details = [told.get(f"{field}[{row}]") for row in range(len(sources))]
    if len(sources) == 1:
        details = [details[0] or problem.detail]
    if None in details:
        raise ProblemError(problem)
    failed = tuple(_failed(source, str(detail)) for source, detail in zip(sources, details, strict=True))
    return PartAnswer(predictions=failed, model=None, request_id=problem.request_id)


def _quoted(name: str) -> str:
    try:
        return quote(name, safe="")
    except UnicodeEncodeError as error:
        raise InputError(f"{name!r} names no model or version: {error.reason}") from None


def _model_of(raw: Any) -> Model:
    return Model.read(raw["model"])


def _named(prediction: Prediction | FailedPrediction, source: str) -> Prediction | FailedPrediction:
    """The service names an image by its place in the request, the caller by where it came from."""
    return prediction if isinstance(prediction, Prediction) else _failed(source, prediction.error.detail)


def _failed(source: str, detail: str) -> FailedPrediction:
    return FailedPrediction(error=Fault(field=source, detail=detail))


def _read_json(response: httpx.Response, read: Callable[[Any], Result]) -> Result:
    return _read(response, lambda answered: read(answered.json()))


def _read(response: httpx.Response, read: Callable[[httpx.Response], Result]) -> Result:
    """Raises ProblemError for a refusal, AnswerError for what is neither that nor an answer."""
    if not response.is_success:
        raise ProblemError(_problem(response))
    return _checked(response, lambda: read(response))


def _problem(response: httpx.Response) -> Problem:
    return _checked(response, lambda: Problem.read(response.json()))


def _checked(response: httpx.Response, read: Callable[[], Result]) -> Result:
    try:
        return read()
    except MISSHAPEN as error:
        raise _not_ours(response, error) from None


def _not_ours(response: httpx.Response, error: Exception) -> AnswerError:
    reason = f"{type(error).__name__}: {error}" if response.is_success else response.reason_phrase
    told = f"{response.request.url}{by_proxy(response.request)} answered {response.status_code}"
    return AnswerError(f"{told} not as lgm-guard does ({reason})")
