"""When a request is sent again, and how long after: the part of it that knows neither sockets nor sleep."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from service.client.errors import ClientError, DeadlineError, InputError, UnreachableError
from service.client.transports import by_proxy

AGAIN_STATUSES = frozenset({429, 503})  # all others would answer the same again, or have had an effect
UNTOLD_ATTEMPTS = 5
SILENCE = "Server disconnected without sending a response."  # httpcore has no error of its own for it


@dataclass(frozen=True, kw_only=True, slots=True)
class Retries:
    """max_attempts in all; waits double from first_wait_seconds to max_wait_seconds, each cut at random to spread.

    A Retry-After of the service is followed instead, however long, if the deadline allows; at random up to as long
    again passes besides, but no more than max_wait_seconds. Without max_attempts the deadline alone bounds those that
    follow a Retry-After, and all others are five at most.
    """

    max_attempts: int | None = None
    first_wait_seconds: float = 0.1
    max_wait_seconds: float = 5.0

    def __post_init__(self) -> None:
        never = self.max_attempts is not None and self.max_attempts < 1
        if never or not 0 <= self.first_wait_seconds <= self.max_wait_seconds:
            raise InputError(f"retries need max_attempts >= 1 and 0 <= first wait <= longest wait, got {self}")


class Attempts:
    """The attempts at one request, within one deadline for all of them.

    repeatable: whether doing it twice is as doing it once.
    """

    def __init__(
        self,
        retries: Retries,
        *,
        timeout_seconds: float,
        repeatable: bool = True,
        draw: Callable[[], float] = random.random,
    ):
        self._retries = retries
        self._timeout_seconds = timeout_seconds
        self.deadline = time.monotonic() + timeout_seconds
        self._repeatable = repeatable
        self._draw = draw
        self._made = 0
        self._told = 0

    def begin(self) -> float:
        """Count one more; the seconds left for it. Raises DeadlineError for none."""
        self._made += 1
        if (left := self.deadline - time.monotonic()) <= 0:
            raise self.too_late()
        return left

    def too_late(self) -> DeadlineError:
        return DeadlineError(f"no answer within {self._timeout_seconds:g} s")

    def after_response(self, response: httpx.Response) -> float | None:
        """How long to wait before the next attempt; None where this answer stands."""
        if response.status_code not in AGAIN_STATUSES:
            return None
        told = retry_after(response.headers.get("retry-after"))
        self._told += told is not None
        wait = self._draw() * self._doubled() if told is None else self._spread(told)
        return wait if not self._spent() and self._in_time(wait) else None

    def after_failure(self, error: httpx.TransportError) -> float:
        """How long to wait before the next attempt. Raises what the caller is to see where there is none.

        Only where no byte of an answer had come: what was answered by halves may have been done.
        """
        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            raise self.too_late() from error
        wait = self._draw() * self._doubled()
        if _unanswered(error) and not _unsent(error) and not self._repeatable:
            raise UnreachableError(_describe(error, "gave no answer and may have done what was asked")) from error
        if not _unanswered(error) or self._spent() or not self._in_time(wait):
            raise UnreachableError(_describe(error, "cannot be reached")) from error
        return wait

    def broken_off(self, error: httpx.TransportError) -> ClientError:
        """What the caller is to see where an answer had begun: it is not asked for again."""
        if isinstance(error, httpx.TimeoutException):
            return self.too_late()
        return UnreachableError(_describe(error, "broke off its answer"))

    def _spent(self) -> bool:
        if self._retries.max_attempts is None:
            return self._made - self._told >= UNTOLD_ATTEMPTS
        return self._made >= self._retries.max_attempts

    def _doubled(self) -> float:
        """The longest wait; anywhere up to it (full jitter), so that clients do not come back together."""
        longest = self._retries.first_wait_seconds * 2.0 ** min(self._made - 1, 64)
        return min(self._retries.max_wait_seconds, longest)

    def _spread(self, told: float) -> float:
        """Not before the service said, and well before the deadline."""
        longest = min(max(told, self._doubled()), self._retries.max_wait_seconds)
        rest = max(0.0, self.deadline - time.monotonic() - told)
        return told + self._draw() * min(longest, rest / 2)

    def _in_time(self, wait: float) -> bool:
        return time.monotonic() + wait < self.deadline


def retry_after(header: str | None) -> float | None:
    """Seconds from now, from a number of seconds or an HTTP date; None where there is no sense in it."""
    if header is None:
        return None
    if header.isascii() and header.isdecimal():
        return float(header)
    try:
        date = parsedate_to_datetime(header)
    except (ValueError, OverflowError):
        return None
    zoned = date if date.tzinfo else date.replace(tzinfo=UTC)
    return max(0.0, (zoned - datetime.now(UTC)).total_seconds())


def _unsent(error: httpx.TransportError) -> bool:
    return isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout))


def _unanswered(error: httpx.TransportError) -> bool:
    if isinstance(error, httpx.RemoteProtocolError):
        return str(error) == SILENCE
    return _unsent(error) or isinstance(error, (httpx.ReadError, httpx.WriteError))


def _describe(error: httpx.TransportError, what: str) -> str:
    url = error.request.url
    told = f"{what}{by_proxy(error.request)}"
    return f"{url.scheme}://{url.netloc.decode()} {told}: {str(error) or type(error).__name__}"
