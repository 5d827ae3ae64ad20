"""The async client."""

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TypeVar

import anyio
import anyio.to_thread
import httpx

from service.client import calls
from service.client.answers import Answer, Model, Versions
from service.client.calls import Call, Conversation, Known
from service.client.common import DEFAULT_URL, Collected, Settings, build_request, by_environment, readable
from service.client.errors import InputError
from service.client.images import Images, Unsendable
from service.client.parts import Part
from service.client.retries import Attempts, Retries

Result = TypeVar("Result")


class AsyncClient:
    """The same for tasks; a call's requests run side by side, at most max_concurrency of them."""

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        timeout_seconds: float = 30.0,
        retries: Retries | None = None,
        max_instances: int = 64,
        max_concurrency: int = 4,
        verify: ssl.SSLContext | bool = True,
    ):
        self._settings = Settings(
            url=url,
            key=key,
            timeout_seconds=timeout_seconds,
            retries=retries or Retries(),
            max_instances=max_instances,
        )
        if max_concurrency < 1:
            raise InputError(f"max_concurrency must be at least 1, got {max_concurrency}")
        self._max_concurrency = max_concurrency
        self._known = Known()
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=max_concurrency)
        with by_environment(verify):
            self._http = httpx.AsyncClient(base_url=url, headers=self._settings.headers, verify=verify, limits=limits)

    async def __aenter__(self) -> "AsyncClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        await self._http.aclose()

    async def predict(self, images: Images, *, request_id: str | None = None) -> Answer:
        """As Client.predict. Files are read and images encoded in a thread, no further ahead than they are sent."""
        collected, parts = Collected(request_id), self._settings.parts(images)
        places = anyio.Semaphore(self._max_concurrency)
        failures: list[Exception] = []
        async with anyio.create_task_group() as group:
            sending = _Sending(collected, places, failures, group.cancel_scope)
            try:
                while (part := await _next_part(parts, places)) is not None:
                    group.start_soon(self._predict_part, part, sending)
            except Exception as error:  # also what a caller's own iterator raises
                sending.fail(error)
        if failures:
            raise failures[0]  # not in a group: the sync client raises the first as well
        return collected.answer()

    async def ready(self) -> Model | None:
        """The model that serves, or None while the service takes no traffic."""
        return await self._run(calls.ready())

    async def models(self) -> Versions:
        """What there is, and what state each version is in."""
        return await self._run(calls.models())

    async def activate(self, name: str, version: str) -> Model:
        """Let that version answer, loaded first if need be."""
        return await self._run(calls.activate(name, version))

    async def roll_back(self, name: str) -> Model:
        """Let the version answer again that did before. Not sent again where a connection broke."""
        return await self._run(calls.roll_back(name))

    async def _predict_part(self, part: Part | Unsendable, sending: "_Sending") -> None:
        collected = sending.collected
        try:
            if isinstance(part, Unsendable):
                collected.add_failed(part)
                return
            number, own_id = collected.begin()
            collected.add(number, part, await self._run(calls.predict(part, self._known, request_id=own_id)))
        except Exception as error:
            sending.fail(error)
        finally:
            sending.places.release()

    async def _run(self, conversation: Conversation[Result]) -> Result:
        try:
            call = next(conversation)
            while True:
                call = conversation.send(await self._send(call))
        except StopIteration as end:
            result: Result = end.value
            return result

    async def _send(self, call: Call) -> httpx.Response:
        attempts = self._settings.attempts(call)
        while True:
            left = attempts.begin()
            request = build_request(self._http, call, left)
            try:
                with anyio.fail_after(left), readable(request):
                    response = await self._http.send(request, stream=True)
                    await _read_whole(response, attempts)
            except TimeoutError:
                raise attempts.too_late() from None
            except httpx.TransportError as error:
                await anyio.sleep(attempts.after_failure(error))
                continue
            if (wait := attempts.after_response(response)) is None:
                return response
            await anyio.sleep(wait)


@dataclass(frozen=True, slots=True)
class _Sending:
    """One call's requests on their way; the first failure ends them all."""

    collected: Collected
    places: anyio.Semaphore
    failures: list[Exception]
    scope: anyio.CancelScope

    def fail(self, error: Exception) -> None:
        self.failures.append(error)
        self.scope.cancel()


async def _next_part(parts: Iterator[Part | Unsendable], places: anyio.Semaphore) -> Part | Unsendable | None:
    await places.acquire()
    return await anyio.to_thread.run_sync(next, parts, None)


async def _read_whole(response: httpx.Response, attempts: Attempts) -> None:
    try:
        await response.aread()
    except httpx.TransportError as error:
        raise attempts.broken_off(error) from error
    finally:
        await response.aclose()
