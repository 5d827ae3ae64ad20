"""How much may be in flight at once, over every transport. Refusals are immediate."""

from service.errors import OverloadedError, TooManyRequestsError
from service.settings import Settings

MOST_OVERSEEING = 128  # twice as many as may listen to the monitor's stream


class Flight:
    """Counts requests in flight, of all and of each caller, and the bytes of bodies that they hold."""

    def __init__(self, *, max_requests: int, max_requests_per_caller: int, max_bytes: int):
        self._max_requests, self._max_bytes = max_requests, max_bytes
        self._max_requests_per_caller = max_requests_per_caller or max_requests
        self._by_caller: dict[str, int] = {}
        self.num_requests = 0
        self.num_bytes = 0

    def enter(self, caller: str) -> None:
        """Raises OverloadedError, TooManyRequestsError."""
        self.check_room()
        own = self._by_caller.get(caller, 0)
        if own >= self._max_requests_per_caller:
            raise TooManyRequestsError(f"{own} requests of this caller are in flight, the limit")
        self._by_caller[caller] = own + 1
        self.num_requests += 1

    def check_room(self, count: int = 1) -> None:
        """Raises OverloadedError where so many requests more would not be let in, whoever's they are."""
        if self.num_requests + count > self._max_requests:
            raise OverloadedError(f"{self.num_requests} requests are in flight, the limit")

    def leave(self, caller: str, num_bytes: int) -> None:
        self.num_requests -= 1
        self.num_bytes -= num_bytes
        self._by_caller[caller] -= 1
        if not self._by_caller[caller]:
            del self._by_caller[caller]

    def hold(self, num_bytes: int) -> None:
        """Raises OverloadedError."""
        self.num_bytes += num_bytes
        if self.num_bytes > self._max_bytes:
            raise OverloadedError(f"the bodies in flight hold more than {self._max_bytes} bytes, the limit")


def flight_of(settings: Settings) -> Flight:
    return Flight(
        max_requests=settings.max_in_flight,
        max_requests_per_caller=settings.max_in_flight_per_key,
        max_bytes=settings.max_held_bytes,
    )


def oversight_of(settings: Settings) -> Flight:
    """Places apart for those who look after the service: a full flight is when they are needed."""
    return Flight(
        max_requests=MOST_OVERSEEING,
        max_requests_per_caller=settings.max_in_flight_per_key,
        max_bytes=settings.max_body_bytes,
    )
