"""By when a caller needs the answer: the header X-Deadline-Ms, within the service's own limit."""

import time
from typing import NamedTuple

from service.errors import FieldFault, InvalidInputError

HEADER = b"x-deadline-ms"
MOST_DIGITS = 9


class Deadline(NamedTuple):
    """In time.monotonic() seconds; is_callers: whether it comes before the service's own limit."""

    at: float
    is_callers: bool


def deadline_of(header: bytes | None, *, limit_seconds: float) -> Deadline:
    """Raises InvalidInputError for a header that is not a whole number above 0."""
    now = time.monotonic()
    if header is None:
        return Deadline(now + limit_seconds, is_callers=False)
    if not (header.isdigit() and len(header) <= MOST_DIGITS and int(header) > 0):
        limit = "must be a whole number of milliseconds from now, 1 to 999999999"
        raise InvalidInputError(FieldFault(HEADER.decode(), limit))
    seconds = int(header) / 1000
    return Deadline(now + min(limit_seconds, seconds), is_callers=seconds < limit_seconds)
