"""Token buckets that several services share, in Redis; while it fails, each goes on with buckets of its own."""

import logging
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from service.errors import SettingsError
from service.metrics import Metrics
from service.rate_limit import Allowance, RateLimiter, TokenBuckets
from service.settings import Settings

logger = logging.getLogger(__name__)

# A limit must not cost more than what it guards: judging one image takes milliseconds.
TIMEOUT_SECONDS = 0.25
RETRY_SECONDS = 1.0

# As TokenBuckets, by Redis' own clock, so that the services' need not agree; microseconds stay whole in a double.
# A bucket expires when it is full, which is as good as none. Answers: until it is full, and until it lets one in.
SCRIPT = """
local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2]
local per_token, burst, tokens = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local full_at = math.max(tonumber(redis.call('GET', KEYS[1]) or 0), now)
local wait = full_at - now - (burst - 1) * per_token
if tokens == 0 then
    if wait > 0 then
        return {string.format('%.3f', full_at - now), string.format('%.3f', wait)}
    end
    tokens = 1
end
full_at = full_at + tokens * per_token
redis.call('SET', KEYS[1], string.format('%.3f', full_at), 'PX', math.ceil((full_at - now) / 1000))
return {string.format('%.3f', full_at - now), '0'}
"""
TAKE = 0  # in place of a number of tokens to charge: one, if there is one


class SharedTokenBuckets:
    """Raises nothing over a Redis that fails: meanwhile `own` limits, which the metric and the log say."""

    def __init__(self, client: Any, name: str, own: TokenBuckets, metrics: Metrics, *, retry_seconds: float):
        self._script = client.register_script(SCRIPT)
        self._client, self._name, self._own, self._metrics = client, name, own, metrics
        self._retry_seconds, self._retry_at = retry_seconds, 0.0
        self._trouble: type[Exception] | None = None

    @property
    def policy(self) -> str:
        return self._own.policy

    async def take(self, caller: str) -> Allowance:
        return await self._ask(caller, TAKE) or await self._own.take(caller)

    async def charge(self, caller: str, tokens: int) -> Allowance:
        return await self._ask(caller, tokens) or await self._own.charge(caller, tokens)

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, caller: str, tokens: int) -> Allowance | None:
        """None where Redis does not answer, or has just not answered."""
        from redis.exceptions import RedisError

        if self._trouble is not None:
            if time.monotonic() < self._retry_at:
                return None
            self._retry_at = time.monotonic() + self._retry_seconds  # one request tries, the others do not wait
        arguments = [1e6 / self._own.per_second, self._own.burst, tokens]
        try:
            full_after, wait = await self._script(keys=[f"lgm:rate:{caller}"], args=arguments)
        except (RedisError, OSError) as error:
            self._failed(error)
            return None
        self._answered()
        return self._own.allowance(float(full_after) / 1e6, float(wait) / 1e6)

    def _failed(self, error: Exception) -> None:
        if type(error) is not self._trouble:
            reason = f"{type(error).__name__}: {error}"
            logger.error("the rate limits' store %s fails, each service limits by itself: %s", self._name, reason)
        self._trouble, self._retry_at = type(error), time.monotonic() + self._retry_seconds
        self._metrics.rate_limit_store_up.set(0)

    def _answered(self) -> None:
        if self._trouble is not None:
            logger.warning("the rate limits' store %s answers again", self._name)
            self._metrics.rate_limit_store_up.set(1)
        self._trouble = None


def shared_limiter(
    address: str,
    own: TokenBuckets,
    metrics: Metrics,
    *,
    timeout_seconds: float = TIMEOUT_SECONDS,
    retry_seconds: float = RETRY_SECONDS,
) -> SharedTokenBuckets:
    """timeout_seconds: of one question; retry_seconds: until it is asked again after a failure.

    Raises SettingsError for an address that is no Redis', or where its client is missing.
    """
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as RedisConnectionError
    except ImportError as error:
        raise SettingsError(f"rate_limit_store: {error.name} is missing; pip install 'lgm-guard[scale]'") from None
    connect: Callable[..., Any] = Redis.from_url
    timeouts = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    # Once more where a connection is gone: those of before a restart must not each be a failure.
    once_more = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
    try:
        client = connect(address, retry=once_more, **timeouts)
    except ValueError:  # whose words may hold half a password
        raise SettingsError(
            "rate_limit_store: not a URL as redis://:password@host:port/number; / ? # @ in a password are written %XX"
        ) from None
    parts = urlsplit(address)
    name = f"{parts.hostname or ''}{parts.path}"  # without a password
    return SharedTokenBuckets(client, name, own, metrics, retry_seconds=retry_seconds)


def limiter_of(settings: Settings, metrics: Metrics) -> RateLimiter | None:
    """The one of the settings. Raises SettingsError."""
    if not settings.rate_limit:
        return None
    own = TokenBuckets(per_second=settings.rate_limit, burst=settings.rate_limit_burst)
    if settings.rate_limit_store is None:
        return own
    return shared_limiter(settings.rate_limit_store, own, metrics)
