"""Limits that services share, over a real Redis that is killed, stopped and started again."""

import asyncio
import logging
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from service.errors import SettingsError
from service.metrics import Metrics
from service.rate_limit import TokenBuckets
from service.settings import load_settings
from service.shared_rate_limit import SharedTokenBuckets, limiter_of, shared_limiter
from tests.redis_server import TIMEOUT, RedisServer

HOUR = 3600.0


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    folder = Path(tempfile.mkdtemp(prefix="lgm-redis-"))
    server = RedisServer(folder)
    server.start()
    yield server
    server.kill()
    shutil.rmtree(folder)


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    with server.client() as client:
        client.flushall()
    return server


class Services:
    """Two of them, that each have a limiter of one policy."""

    def __init__(self, url: str, *, per_second: float = 1 / HOUR, burst: int = 4, timeout_seconds: float = TIMEOUT):
        self.metrics = Metrics()
        self.limiters = [
            shared_limiter(
                url,
                TokenBuckets(per_second=per_second, burst=burst),
                self.metrics,
                timeout_seconds=timeout_seconds,
                retry_seconds=0,
            )
            for _ in range(2)
        ]

    def run(self, scenario: Callable[[SharedTokenBuckets, SharedTokenBuckets], Awaitable[None]]) -> None:
        async def whole() -> None:
            try:
                await scenario(*self.limiters)
            finally:
                for limiter in self.limiters:
                    await limiter.close()

        asyncio.run(whole())

    @property
    def up(self) -> float | None:
        return self.metrics.registry.get_sample_value("lgm_rate_limit_store_up")


def test_services_share_what_a_caller_has(redis: RedisServer) -> None:
    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        told = [await limiter.take("a") for limiter in (one, other, other, one, other)]
        assert [allowance.granted for allowance in told] == [True] * 4 + [False]
        assert [allowance.remaining for allowance in told] == [3, 2, 1, 0, 0]
        assert told[-1].retry_after_seconds == pytest.approx(HOUR, abs=TIMEOUT)
        assert told[-1].full_after_seconds == pytest.approx(4 * HOUR, abs=TIMEOUT)
        assert (await other.take("b")).remaining == 3

    Services(redis.url).run(scenario)


def test_what_one_charges_another_asks_back(redis: RedisServer) -> None:
    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        assert (await one.take("a")).granted
        assert (await one.charge("a", 9)).remaining == 0
        refused = await other.take("a")
        assert refused.retry_after_seconds == pytest.approx(7 * HOUR, abs=TIMEOUT)
        with redis.client() as client:
            assert client.pttl("lgm:rate:a") == pytest.approx(10 * HOUR * 1000, abs=TIMEOUT * 1000)

    Services(redis.url).run(scenario)


def test_many_at_once_get_no_more_than_there_is(redis: RedisServer) -> None:
    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        told = await asyncio.gather(*(limiter.take("a") for _ in range(50) for limiter in (one, other)))
        assert sum(allowance.granted for allowance in told) == 7

    Services(redis.url, burst=7).run(scenario)


def test_whoever_comes_back_when_it_was_told_is_let_in(redis: RedisServer) -> None:
    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        assert (await one.take("a")).granted
        refused = await other.take("a")
        assert 0 < refused.retry_after_seconds <= 2
        await asyncio.sleep(refused.retry_after_seconds + 0.001)
        assert (await other.take("a")).granted

    Services(redis.url, per_second=0.5, burst=1).run(scenario)


def test_without_redis_each_limits_by_itself_until_it_is_back(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    services = Services(redis.url, burst=2)

    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        assert (await one.take("a")).remaining == 1
        assert services.up == 1
        redis.kill()
        for limiter in (one, other):
            told = [await limiter.take("a") for _ in range(3)]
            assert [allowance.granted for allowance in told] == [True, True, False]
            assert (await limiter.charge("b", 1)).remaining == 1
        assert services.up == 0
        redis.start()
        assert [(await limiter.take("a")).granted for limiter in (one, other, one)] == [True, True, False]
        assert services.up == 1

    with caplog.at_level(logging.WARNING, "service.shared_rate_limit"):
        services.run(scenario)
    said = [record.getMessage() for record in caplog.records]
    assert [message.partition(":")[0] for message in said if "each service limits by itself" in message] == [
        f"the rate limits' store {redis.url.removeprefix('unix://')} fails, each service limits by itself"
    ] * 2
    assert sum("answers again" in message for message in said) == 2


def test_a_restart_between_two_questions_is_no_failure(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        await asyncio.gather(*(one.take("a") for _ in range(3)))  # three connections
        redis.kill()
        redis.start()
        assert [(await one.take("a")).remaining for _ in range(3)] == [3, 2, 1]

    with caplog.at_level(logging.WARNING, "service.shared_rate_limit"):
        Services(redis.url).run(scenario)
    assert caplog.messages == []


def test_another_reason_is_told_too(redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        redis.kill()
        await one.take("a")
        await one.take("a")
        redis.start()
        with redis.client() as client:
            client.set("lgm:rate:a", "no number")
        await one.take("a")

    with caplog.at_level(logging.WARNING, "service.shared_rate_limit"):
        Services(redis.url).run(scenario)
    assert [message.split(": ")[1] for message in caplog.messages] == ["ConnectionError", "ResponseError"]


def test_a_redis_that_hangs_holds_up_no_request(redis: RedisServer) -> None:
    services = Services(redis.url, timeout_seconds=0.1)

    async def scenario(one: SharedTokenBuckets, other: SharedTokenBuckets) -> None:
        redis.signal(signal.SIGSTOP)
        try:
            assert (await one.take("a")).granted
            assert services.up == 0
        finally:
            redis.signal(signal.SIGCONT)

    services.run(scenario)


def test_while_it_fails_it_is_asked_no_more_than_now_and_then(tmp_path: Path) -> None:
    limiter = shared_limiter(
        f"unix://{tmp_path}/none", TokenBuckets(per_second=1, burst=10), Metrics(), retry_seconds=HOUR
    )

    async def scenario() -> None:
        await limiter.take("a")
        server = await asyncio.start_unix_server(lambda reader, writer: pytest.fail("asked"), tmp_path / "none")
        async with server:
            assert (await limiter.take("a")).remaining == 8
        await limiter.close()

    asyncio.run(scenario())


def test_two_services_refuse_what_together_is_too_much(redis, make_client, digit_files) -> None:
    given = {"rate_limit": 1 / HOUR, "rate_limit_burst": 3, "rate_limit_store": redis.url}
    one, other = make_client(**given), make_client(**given)
    answers = [
        client.post("/v1/predict", content=digit_files[0], headers={"content-type": "image/png"})
        for client in (one, other, one, other)
    ]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert [answer.headers["ratelimit"].partition(";t=")[0] for answer in answers] == [
        f'"images";r={remaining}' for remaining in (2, 1, 0, 0)
    ]


@pytest.mark.parametrize("address", ["http://host", "redis:// host", "host:6379"])
def test_an_address_that_is_no_redis_is_a_wrong_setting(address: str) -> None:
    with pytest.raises(SettingsError, match="rate_limit_store"):
        load_settings(rate_limit_store=address)
    with pytest.raises(SettingsError, match=r"rate_limit_store: .*written %XX") as refused:
        limiter_of(load_settings(rate_limit=1, rate_limit_store="redis://:hun/ter2@host:6379"), Metrics())
    assert "hun" not in str(refused.value)


def test_without_its_client_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(SettingsError, match=r"rate_limit_store: redis.asyncio is missing; pip .*\[scale\]"):
        limiter_of(load_settings(rate_limit=1, rate_limit_store="redis://host"), Metrics())


def test_without_a_limit_the_store_is_not_asked_for() -> None:
    assert limiter_of(load_settings(rate_limit_store="redis://host"), Metrics()) is None
