"""The sync client."""

import ssl
import time
from types import TracebackType
from typing import TypeVar

import httpx

from service.client import calls
from service.client.answers import Answer, Model, Versions
from service.client.calls import Call, Conversation, Known
from service.client.common import DEFAULT_URL, Collected, Settings, build_request, by_environment, readable
from service.client.images import Images, Unsendable
from service.client.retries import Attempts, Retries
from service.client.transports import keep_deadlines, until

Result = TypeVar("Result")


class Client:
    """Asks a service, one request after the other. A context manager; may be shared by threads.

    key: an API key. timeout_seconds: for each request, its retries included. max_instances: most images a request.
    verify: whether TLS certificates are checked, or what by.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        retries: Retries | None = None,
        max_instances: int = 64,
        verify: ssl.SSLContext | bool = True,
    ):
        self._settings = Settings(
            url=url,
            key=key,
            timeout_seconds=timeout_seconds,
            retries=retries or Retries(),
            max_instances=max_instances,
        )
        self._known = Known()
        with by_environment(verify):
            self._http = httpx.Client(base_url=url, headers=self._settings.headers, verify=verify)
        keep_deadlines(self._http)

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def predict(self, images: Images, *, request_id: str | None = None) -> Answer:
        """Judge one image or many: paths, files' bytes, Pillow images, arrays (c, h, w) or (n, c, h, w).

        Arrays hold floats in [0, 1] or uint8. An image that cannot be judged is a FailedPrediction in its place.
        Raises InputError, UnreachableError, DeadlineError, ProblemError, AnswerError.
        """
        collected = Collected(request_id)
        for part in self._settings.parts(images):
            if isinstance(part, Unsendable):
                collected.add_failed(part)
                continue
            number, own_id = collected.begin()
            collected.add(number, part, self._run(calls.predict(part, self._known, request_id=own_id)))
        return collected.answer()

    def ready(self) -> Model | None:
        """The model that serves, or None while the service takes no traffic."""
        return self._run(calls.ready())

    def models(self) -> Versions:
        """What there is, and what state each version is in."""
        return self._run(calls.models())

    def activate(self, name: str, version: str) -> Model:
        """Let that version answer, loaded first if need be."""
        return self._run(calls.activate(name, version))

    def roll_back(self, name: str) -> Model:
        """Let the version answer again that did before. Not sent again where a connection broke."""
        return self._run(calls.roll_back(name))

    def _run(self, conversation: Conversation[Result]) -> Result:
        try:
            call = next(conversation)
            while True:
                call = conversation.send(self._send(call))
        except StopIteration as end:
            result: Result = end.value
            return result

    def _send(self, call: Call) -> httpx.Response:
        attempts = self._settings.attempts(call)
        while True:
            left = attempts.begin()
            request = build_request(self._http, call, left)
            try:
                with until(attempts.deadline), readable(request):
                    response = self._http.send(request, stream=True)
                    _read_whole(response, attempts)
            except httpx.TransportError as error:
                time.sleep(attempts.after_failure(error))
                continue
            if (wait := attempts.after_response(response)) is None:
                return response
            time.sleep(wait)


def _read_whole(response: httpx.Response, attempts: Attempts) -> None:
    try:
        response.read()
    except httpx.TransportError as error:
        raise attempts.broken_off(error) from error
    finally:
        response.close()
