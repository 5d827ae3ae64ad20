"""The log's lines about requests refused with 503."""

import logging
import time

logger = logging.getLogger("service.access")


class Refusals:
    """Lines of requests refused with 503: one a second, since writing thousands would itself be the overload."""

    def __init__(self) -> None:
        self._next_line, self._num_unwritten = 0.0, 0

    def worth_a_line(self) -> bool:
        now = time.monotonic()
        if now < self._next_line:
            self._num_unwritten += 1
            return False
        if self._num_unwritten:
            logger.info("%d more requests were refused with 503 since the last such line", self._num_unwritten)
        self._next_line, self._num_unwritten = now + 1, 0
        return True
