"""The quarantine as whoever reviews sees it. Every call may block: off the event loop, by asyncio.to_thread."""

from collections.abc import Mapping

from service.judgements import Floats
from service.quarantine.records import AuditLine, Filter, Item, Page, State

EVERYTHING = Filter()


class Quarantine:
    """Thread-safe. Each method raises QuarantineUnavailableError where database or store cannot be reached."""

    def list(self, chosen: Filter = EVERYTHING, *, cursor: str | None = None, limit: int = 50) -> Page:
        """The newest first; cursor is a page's next_cursor. Raises InvalidInputError for another one."""
        raise NotImplementedError

    def get(self, item_id: str) -> Item:
        """Raises UnknownItemError."""
        raise NotImplementedError

    def image(self, item_id: str) -> bytes:
        """A PNG to look at; of an image beyond 8 bit it is rounded. Raises UnknownItemError."""
        raise NotImplementedError

    def pixels(self, item_id: str) -> Floats:
        """The image (c, h, w) in [0, 1] exactly as it was judged. Raises UnknownItemError."""
        raise NotImplementedError

    def review(
        self, item_id: str, state: State, *, reviewer: str, reason: str | None, expected_revision: int
    ) -> Item:
        """The item after the review. Raises UnknownItemError, TransitionError, ChangedMeanwhileError."""
        raise NotImplementedError

    def delete(self, item_id: str, *, who: str) -> None:
        """Row and bytes go, the audit stays. Raises UnknownItemError."""
        raise NotImplementedError

    def audit(self, item_id: str) -> tuple[AuditLine, ...]:
        """The oldest first; also of an item that is no more. Raises UnknownItemError where there is neither."""
        raise NotImplementedError

    def counts(self, chosen: Filter = EVERYTHING) -> Mapping[State, int]:
        """How many of the chosen items are in each state."""
        raise NotImplementedError
