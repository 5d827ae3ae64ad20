"""Whether files have changed, asked as often as one likes and looked at no more than once a second."""

import os
import time
from collections.abc import Callable
from pathlib import Path

Look = tuple[int, int, int, int] | None


class FileWatch:
    """Remembers what the files looked like; a file that is replaced, rewritten or gone has changed."""

    def __init__(self, *paths: Path, every_seconds: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._paths, self._every_seconds, self._clock = paths, every_seconds, clock
        self._seen = self._signature()
        self._next_look = clock() + every_seconds

    def changed(self) -> bool:
        """True once for each change that is seen."""
        now = self._clock()
        if now < self._next_look:
            return False
        self._next_look = now + self._every_seconds
        seen, self._seen = self._seen, self._signature()
        return seen != self._seen

    def _signature(self) -> tuple[Look, ...]:
        return tuple(_look_at(path) for path in self._paths)


def _look_at(path: Path) -> Look:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino
