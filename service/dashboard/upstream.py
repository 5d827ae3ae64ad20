"""The service as the page knows it: HTTP with the key of whoever looks."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any

import httpx

from service.client.answers import Problem
from service.client.errors import AnswerError, ProblemError, UnreachableError
from service.dashboard.options import Options

TIMEOUT_SECONDS = 10.0
SILENT_SECONDS = 30.0  # a stream without even a heartbeat for so long is dead
ROLES = ("predict", "review", "admin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Whom the service takes a key for; no name where it asks for none."""

    name: str | None
    role: str

    def may(self, role: str) -> bool:
        return ROLES.index(self.role) >= ROLES.index(role)


class Service:
    """Each method raises UnreachableError, ProblemError for what the service refuses, AnswerError for nonsense."""

    def __init__(self, options: Options):
        transport = None if options.socket is None else httpx.AsyncHTTPTransport(uds=str(options.socket))
        self.url = options.url
        self._http = httpx.AsyncClient(
            base_url=options.url,
            transport=transport,
            timeout=TIMEOUT_SECONDS,
            headers={"accept-encoding": "identity"},
            # What a proxy on the way sets for one key is not to be sent for everybody.
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=[])),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def whoami(self, key: str | None) -> Identity:
        raw = await self.json("/v1/whoami", key=key)
        try:
            return Identity(name=raw["name"], role=ROLES[ROLES.index(raw["role"])])
        except (KeyError, TypeError, ValueError) as error:
            raise AnswerError(f"{self.url} is no lgm-guard service of this version ({error})") from None

    async def json(self, path: str, *, key: str | None, params: Mapping[str, Any] | None = None) -> Any:
        return (await self.ask("GET", path, key=key, params=params)).json()

    async def ask(self, method: str, path: str, *, key: str | None, **given: Any) -> httpx.Response:
        headers = {**_credential(key), **given.pop("headers", {})}
        try:
            response = await self._http.request(method, path, headers=headers, **given)
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not answer ({_reason(error)})") from None
        _check(response)
        return response

    @asynccontextmanager
    async def events(self, path: str, *, key: str | None) -> AsyncIterator[AsyncIterator[str]]:
        """The data of a stream's events, as they come; it ends when the service ends it."""
        timeout = httpx.Timeout(TIMEOUT_SECONDS, read=SILENT_SECONDS)
        try:
            async with self._http.stream("GET", path, headers=_credential(key), timeout=timeout) as response:
                if not response.is_success:
                    await response.aread()
                _check(response)
                yield _data(response.aiter_lines())
        except httpx.TransportError as error:
            raise UnreachableError(f"{self.url} does not answer ({_reason(error)})") from None


async def _data(lines: AsyncIterator[str]) -> AsyncIterator[str]:
    """Server-sent events whose data may take several lines; comments are heartbeats."""
    data: list[str] = []
    async for line in lines:
        if line.startswith("data:"):
            data.append(line.removeprefix("data:").removeprefix(" "))
        elif not line and data:
            yield "\n".join(data)
            data = []


def _credential(key: str | None) -> dict[str, str]:
    return {} if key is None else {"authorization": f"Bearer {key}"}


def _check(response: httpx.Response) -> None:
    if response.is_success:
        return
    try:
        problem = Problem.read(response.json())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise AnswerError(
            f"{response.request.url.path} answered {response.status_code}, not as lgm-guard does"
        ) from None
    raise ProblemError(problem)


def _reason(error: httpx.TransportError) -> str:
    return str(error) or type(error).__name__
