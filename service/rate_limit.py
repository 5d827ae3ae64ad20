"""How fast one caller may send: token buckets, paid in images.

A request takes one token to be let in and pays for its further images once they are counted, if need be on credit:
so any size passes, and who sent much waits the longer. One number a caller is kept, the time at which its
bucket is full again; a full bucket is as good as none and is dropped.
"""

import math
import time
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from service.errors import InvalidImagesError

MAX_BUCKETS = 10_000
OVERFLOW = "*"
SWEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a caller has left. `retry_after_seconds` is 0 where the request is let in."""

    remaining: int
    full_after_seconds: float
    retry_after_seconds: float

    @property
    def granted(self) -> bool:
        return self.retry_after_seconds == 0

    @property
    def told(self) -> str:
        """The value of RateLimit."""
        return f'"images";r={self.remaining};t={math.ceil(self.full_after_seconds)}'


@contextmanager
def paying_for_faults(state: MutableMapping[str, Any]) -> Iterator[None]:
    """Images that cannot be judged were read all the same: each has its fault, and counts in the request's state."""
    try:
        yield
    except InvalidImagesError as error:
        state["num_images"] = len(error.faults)
        raise


class RateLimiter(Protocol):
    """Kept by one process, or shared by several, hence awaited."""

    @property
    def policy(self) -> str:
        """The value of RateLimit-Policy."""

    async def take(self, caller: str) -> Allowance:
        """Let one request in, or say when to come back."""

    async def charge(self, caller: str, tokens: int) -> Allowance:
        """Take further tokens, even where there are none."""

    async def close(self) -> None:
        """Let go of what it holds open."""


class TokenBuckets:
    """The limiter of one process. Beyond MAX_BUCKETS callers that are not idle, new ones share a bucket."""

    def __init__(self, *, per_second: float, burst: int, clock: Callable[[], float] = time.monotonic):
        self.per_second, self.burst, self._clock = per_second, burst, clock
        self._seconds_per_token = 1 / per_second
        self._full_at: dict[str, float] = {}
        self._next_sweep = 0.0

    def __len__(self) -> int:
        return len(self._full_at)

    @property
    def policy(self) -> str:
        return f'"images";q={self.burst};w={math.ceil(self.burst * self._seconds_per_token)}'

    async def take(self, caller: str) -> Allowance:
        now = self._clock()
        bucket = self._bucket(caller, now)
        wait = self._full_at.get(bucket, now) - now - (self.burst - 1) * self._seconds_per_token
        if wait > 0:
            return self.allowance(self._full_at[bucket] - now, wait)
        return self._spend(bucket, now, 1)

    async def charge(self, caller: str, tokens: int) -> Allowance:
        now = self._clock()
        return self._spend(self._bucket(caller, now), now, tokens)

    async def close(self) -> None:
        self._full_at.clear()

    def allowance(self, full_after: float, wait: float) -> Allowance:
        """Of a bucket that is full after so many seconds and lets one in after `wait`."""
        remaining = math.floor(self.burst - full_after / self._seconds_per_token + 1e-6)
        return Allowance(max(0, remaining), full_after, wait)

    def _spend(self, bucket: str, now: float, tokens: int) -> Allowance:
        self._full_at[bucket] = max(self._full_at.get(bucket, now), now) + tokens * self._seconds_per_token
        return self.allowance(self._full_at[bucket] - now, 0)

    def _bucket(self, caller: str, now: float) -> str:
        if caller in self._full_at or len(self._full_at) < MAX_BUCKETS:
            return caller
        if now >= self._next_sweep:
            self._next_sweep = now + SWEEP_SECONDS
            self._full_at = {name: full_at for name, full_at in self._full_at.items() if full_at > now}
        return caller if len(self._full_at) < MAX_BUCKETS else OVERFLOW
