"""What the sync and the async client share: settings, requests, and how a call's parts come together."""

import os
import re
import ssl
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version

import httpx

from service.client.answers import Answer, FailedPrediction, Prediction
from service.client.calls import Call, PartAnswer
from service.client.errors import AnswerError, InputError
from service.client.images import Images, Unsendable, entries
from service.client.parts import FilePart, Part, split
from service.client.retries import Attempts, Retries
from service.client.transports import PROXY, proxy_of

DEFAULT_URL = "http://127.0.0.1:8000"
DEADLINE = "x-deadline-ms"
LONGEST_SECONDS = 86_400
CONNECT_SECONDS = 5.0
MAX_PORT = 65_535
MAX_BYTES = 8 * 1024 * 1024  # half of what the service takes by default
ENVIRONMENT = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "SSL_CERT_DIR")  # httpx reads
VISIBLE = re.compile(r"[!-~]+")
SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,56}")  # the service takes 64; a part's number is added


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What both clients are told. Raises InputError for what no request could be made of."""

    url: str
    key: str | None
    timeout_seconds: float
    retries: Retries
    max_instances: int

    def __post_init__(self) -> None:
        _check_url(self.url)
        if self.key is not None and not VISIBLE.fullmatch(self.key):
            raise InputError("the API key must be of visible ASCII characters")
        if not 0 < self.timeout_seconds <= LONGEST_SECONDS:
            raise InputError(f"timeout_seconds must lie in (0, {LONGEST_SECONDS}], got {self.timeout_seconds}")
        if self.max_instances < 1:
            raise InputError(f"max_instances must be at least 1, got {self.max_instances}")

    @property
    def headers(self) -> dict[str, str]:
        """What every request has. Answers are small: unpacking them would cost more than it saves."""
        told = {"user-agent": f"lgm-guard/{version('lgm-guard')}", "accept-encoding": "identity"}
        return told if self.key is None else {**told, "authorization": f"Bearer {self.key}"}

    def attempts(self, call: Call) -> Attempts:
        retries = self.retries if call.retried else Retries(max_attempts=1)
        return Attempts(retries, timeout_seconds=self.timeout_seconds, repeatable=call.repeatable)

    def parts(self, images: Images) -> Iterator[Part | Unsendable]:
        return split(entries(images), max_instances=self.max_instances, max_bytes=MAX_BYTES)


class Collected:
    """The answer to one call as it comes together, part by part, in any order."""

    def __init__(self, request_id: str | None):
        if request_id is not None and not SANE_ID.fullmatch(request_id):
            raise InputError(f"a request id is 1 to 56 of A-Z a-z 0-9 . _ -, got {request_id!r}")
        self._request_id = request_id or uuid.uuid4().hex
        self._num_parts = 0
        self._predictions: dict[int, Prediction | FailedPrediction] = {}
        self._answers: dict[int, PartAnswer] = {}

    def begin(self) -> tuple[int, str]:
        """The number of the next part, and the id of its request: the caller's, with a number after the first."""
        number, self._num_parts = self._num_parts, self._num_parts + 1
        return number, f"{self._request_id}.{number}" if number else self._request_id

    def add_failed(self, image: Unsendable) -> None:
        self._predictions[image.position] = image.failed

    def add(self, number: int, part: Part, answer: PartAnswer) -> None:
        positions = [of.position for of in (part.files if isinstance(part, FilePart) else part.tensors)]
        self._predictions |= zip(positions, answer.predictions, strict=True)
        self._answers[number] = answer

    def answer(self) -> Answer:
        answers = [answer for _, answer in sorted(self._answers.items())]
        return Answer(
            predictions=tuple(prediction for _, prediction in sorted(self._predictions.items())),
            models=tuple(dict.fromkeys(answer.model for answer in answers if answer.model is not None)),
            request_ids=tuple(answer.request_id for answer in answers if answer.request_id is not None),
        )


@contextmanager
def by_environment(verify: ssl.SSLContext | bool) -> Iterator[None]:
    """Around what makes an httpx client. Raises InputError where this option or the environment lets none be made."""
    if not isinstance(verify, (bool, ssl.SSLContext)):
        raise InputError("verify must be True, False or such as ssl.create_default_context(cafile=...)")
    try:
        yield
    except (ImportError, OSError, ValueError, httpx.InvalidURL) as error:
        names = [name for name in os.environ if name.upper() in ENVIRONMENT] or ENVIRONMENT
        raise InputError(f"no client can be made by {', '.join(names)} of the environment: {error}") from error


@contextmanager
def readable(request: httpx.Request) -> Iterator[None]:
    """Raises AnswerError for answers that httpx cannot read: badly packed, or sent on to what is no host."""
    try:
        yield
    except (httpx.DecodingError, UnicodeError) as error:
        raise AnswerError(f"{request.url} answered what cannot be read: {type(error).__name__}: {error}") from error


def build_request(http: httpx.Client | httpx.AsyncClient, call: Call, left: float) -> httpx.Request:
    """The call with the seconds left for it, of which the service is told too."""
    if http.is_closed:
        raise InputError("this client is closed; make another")
    headers = {**call.headers, DEADLINE: str(max(1, int(left * 1000)))}
    timeout = httpx.Timeout(left, connect=min(left, CONNECT_SECONDS))
    return http.build_request(
        call.method,
        call.path,
        headers=headers,
        content=call.content,
        files=call.files,
        timeout=timeout,
        extensions={PROXY: proxy_of(http)},
    )


def _check_url(text: str) -> None:
    try:
        url = httpx.URL(text)
        url.raw_host.decode().encode("idna")  # as the resolver does, and refuses a name too long
        host = url.host
    except (httpx.InvalidURL, ValueError) as error:
        raise InputError(f"{text!r} is no URL: {error}") from None
    if url.scheme not in ("http", "https") or not host or not 0 < (url.port or 80) <= MAX_PORT:
        raise InputError(f"{text!r} is no URL of a service, such as {DEFAULT_URL}")
    if "?" in text or "#" in text:
        raise InputError(f"{text!r} must end before its query or fragment")
    if url.userinfo:
        raise InputError(f"the URL of {host} holds a name or password, which would stand in messages; give a key")
