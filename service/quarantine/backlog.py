"""What waits to be kept: a queue that is bounded in images and in bytes, and never waits for room."""

from collections import deque
from dataclasses import dataclass, replace
from datetime import datetime
from threading import Condition

import numpy as np
from numpy.typing import NDArray

from service.judgements import Floats, Judgements


@dataclass(frozen=True, kw_only=True, slots=True)
class Captured:
    """Images (n, c, h, w) of one request and what was said of them; drawn (n,): those of the blind sample."""

    images: Floats
    judgements: Judgements
    drawn: NDArray[np.bool_]
    model_name: str
    model_version: str
    labels: tuple[str, ...]
    false_alarm_rate: float
    request_id: str
    principal: str
    judged_at: datetime

    def __len__(self) -> int:
        return len(self.images)

    def first(self, count: int) -> "Captured":
        return replace(
            self,
            images=self.images[:count].copy(),  # a view would hold all of them
            judgements=self.judgements.rows(0, count),
            drawn=self.drawn[:count],
        )


class Backlog:
    """Filled by the event loop, emptied by one thread."""

    def __init__(self, *, capacity: int, max_bytes: int):
        self._capacity, self._max_bytes = capacity, max_bytes
        self._waiting: deque[Captured] = deque()
        self._changed = Condition()
        self._closed = False
        self.num_images = 0
        self.had_no_room = False  # for something that came since the last was taken
        self._num_bytes = 0

    def put(self, captured: Captured) -> int:
        """Take as many of the images as there is room for; how many those are."""
        with self._changed:
            count = 0 if self._closed else min(len(captured), self._room(captured))
            self.had_no_room |= count < len(captured)
            if count:
                taken = captured if count == len(captured) else captured.first(count)
                self._waiting.append(taken)
                self._add(taken, 1)
                self._changed.notify()
            return count

    def take(self, timeout_seconds: float) -> Captured | None:
        """What has waited longest; None when nothing came in that time, or nothing will."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed, timeout_seconds)
            if not self._waiting:
                return None
            taken = self._waiting.popleft()
            self.had_no_room = False
            self._add(taken, -1)
            return taken

    def close(self) -> None:
        """Take nothing more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing will."""
        return self._closed and not self._waiting

    def _room(self, captured: Captured) -> int:
        bytes_each = captured.images.nbytes // len(captured)
        return min(self._capacity - self.num_images, (self._max_bytes - self._num_bytes) // bytes_each)

    def _add(self, captured: Captured, sign: int) -> None:
        self.num_images += sign * len(captured)
        self._num_bytes += sign * captured.images.nbytes
