"""Whoever wants to know how an evaluation goes."""

from typing import Protocol, runtime_checkable

from detectors.evaluation.rows import Row


@runtime_checkable
class Watcher(Protocol):
    """Whoever wants to know how an evaluation goes; costs are in passes, for the time left."""

    def start(self, total: int) -> None: ...

    def begin(self, title: str) -> None: ...

    def advance(self, cost: int) -> None: ...

    def extend(self, cost: int) -> None: ...

    def finish(self, rows: list[Row]) -> None: ...


class Silent:
    """A watcher that tells nobody."""

    def start(self, total: int) -> None:
        """Nothing."""

    def begin(self, title: str) -> None:
        """Nothing."""

    def advance(self, cost: int) -> None:
        """Nothing."""

    def extend(self, cost: int) -> None:
        """Nothing."""

    def finish(self, rows: list[Row]) -> None:
        """Nothing."""
