"""By when a caller needs the answer: the header X-Deadline-Ms, within the service's own limit."""

import time

from service.errors import FieldFault, InvalidInputError

HEADER = b"x-deadline-ms"
MOST_DIGITS = 9


def deadline_of(header: bytes | None, *, limit_seconds: float) -> float:
    """In time.monotonic() seconds. Raises InvalidInputError for a header that is not a whole number above 0."""
    now = time.monotonic()
    if header is None:
        return now + limit_seconds
    if not (header.isdigit() and len(header) <= MOST_DIGITS and int(header) > 0):
        limit = "must be a whole number of milliseconds from now, 1 to 999999999"
        raise InvalidInputError(FieldFault(HEADER.decode(), limit))
    return now + min(limit_seconds, int(header) / 1000)
