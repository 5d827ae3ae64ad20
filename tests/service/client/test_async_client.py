"""What only the async client does: requests side by side, within bounds, ended by the first failure."""

import threading
import time
from collections.abc import Iterator

import anyio
import pytest

from service.client import AsyncClient, InputError, ProblemError, Retries
from tests.service.client.scripted import Handler, ScriptedServer, answer, answered, problem

GOOD = answer(200, answered())


class Together:
    """Answers only when so many requests wait at once, and remembers the most that ever did."""

    def __init__(self, count: int):
        self._barrier = threading.Barrier(count, timeout=30)
        self._lock = threading.Lock()
        self._present = 0
        self.most = 0

    def __call__(self, handler: Handler) -> None:
        with self._lock:
            self._present += 1
            self.most = max(self.most, self._present)
        self._barrier.wait()
        time.sleep(0.1)  # long enough for a request beyond the bound to show itself
        with self._lock:
            self._present -= 1
        GOOD(handler)


def predict(url: str, images: object, **options: object) -> object:
    async def run() -> object:
        async with AsyncClient(url, max_instances=1, **options) as client:  # type: ignore[arg-type]
            return await client.predict(images)  # type: ignore[arg-type]

    return anyio.run(run)


def test_requests_run_side_by_side_within_the_bound() -> None:
    together = Together(3)
    with ScriptedServer(together) as server:
        found = predict(server.url, [b"image"] * 9, max_concurrency=3)
    assert len(found.predictions) == 9
    assert together.most == 3
    assert len({received.headers["x-request-id"] for received in server.received}) == 9


def test_the_first_failure_ends_the_others() -> None:
    held = threading.Event()

    def hold(handler: Handler) -> None:
        held.wait(30)

    with ScriptedServer(hold, answer(401, problem(401, "unauthenticated"))) as server:
        started = time.monotonic()
        with pytest.raises(ProblemError, match="401 unauthenticated"):
            predict(server.url, [b"image"] * 50, max_concurrency=2)
        assert time.monotonic() - started < 20
        held.set()
    assert len(server.received) < 10


def test_what_the_callers_own_iterator_raises_comes_through() -> None:
    def images() -> Iterator[bytes]:
        yield b"image"
        raise LookupError("mine")

    with ScriptedServer(GOOD) as server, pytest.raises(LookupError, match="mine"):
        predict(server.url, images())
    with ScriptedServer(GOOD) as server, pytest.raises(InputError, match="an image is"):
        predict(server.url, [b"image", 5])


def test_it_can_be_cancelled() -> None:
    reached = threading.Event()

    def hang(handler: Handler) -> None:
        reached.set()
        time.sleep(0.2)

    async def run(url: str) -> bool:
        async with AsyncClient(url, retries=Retries(max_attempts=1)) as client:
            with anyio.move_on_after(0.1) as scope:
                await client.predict(b"image")
            return scope.cancelled_caught

    with ScriptedServer(hang) as server:
        assert anyio.run(run, server.url)
    assert reached.is_set()


def test_the_bound_must_allow_one() -> None:
    with pytest.raises(InputError, match="max_concurrency must be at least 1"):
        AsyncClient(max_concurrency=0)
