"""Which of what is kept may calibrate: the blind sample of a version's ordinary traffic.

`detectors.recalibration` says why it must be these.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from model.errors import CalibrationError
from service.quarantine.quarantine import MOST_LISTED, Quarantine
from service.quarantine.records import UNREVIEWED, Filter, Item, State, Why

FOUND_OUT = (State.CONFIRMED_ADVERSARIAL, State.ABNORMAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewed:
    """ordinary: what may be added. num_found_out: how many of the blind sample are no ordinary images.

    false_positives and found_out: all that were reviewed as such, of the sample or not; to show what becomes of them.
    """

    ordinary: tuple[Item, ...]
    num_found_out: int
    false_positives: tuple[Item, ...]
    found_out: tuple[Item, ...]

    @property
    def digest(self) -> str:
        """Names the images that may be added."""
        digests = sorted(item.digest for item in self.ordinary)
        return hashlib.sha256("".join(digests).encode()).hexdigest()


def gather(quarantine: Quarantine, *, model: str, version: str, since: datetime | None) -> Reviewed:
    """Raises CalibrationError where flagged or suspected images of the sample are not decided upon."""
    chosen = Filter(model=model, version=version, since=since)
    complete_after = quarantine.last_expired() or ""
    sample = [
        item
        for why in (Why.SAMPLED, Why.ALL)
        for item in every(quarantine, chosen.model_copy(update={"why": why}))
        if item.id > complete_after  # of what is older, the reviewed ones went first: the rest is no fair sample
    ]
    _check_decided(sample)
    found_out = [item for state in FOUND_OUT for item in _with_bytes(quarantine, chosen, state)]
    return Reviewed(
        ordinary=tuple(item for item in sample if item.state not in FOUND_OUT),
        num_found_out=sum(item.state in FOUND_OUT for item in sample),
        false_positives=tuple(_with_bytes(quarantine, chosen, State.FALSE_POSITIVE)),
        found_out=tuple(found_out),
    )


def _check_decided(sample: list[Item]) -> None:
    undecided = [
        item
        for item in sample
        if item.state is State.IN_REVIEW or (item.flagged and item.state in (*UNREVIEWED, State.RELEASED))
    ]
    if undecided:
        raise CalibrationError(
            f"{len(undecided)} images of the blind sample were flagged or are in review, and are not decided upon "
            f"(the newest is {undecided[0].id}); say of each that it is a false positive, abnormal or adversarial: "
            "a sample without them would not be blind"
        )


def _with_bytes(quarantine: Quarantine, chosen: Filter, state: State) -> Iterator[Item]:
    for item in every(quarantine, chosen.model_copy(update={"state": state})):
        if item.media_type is not None:
            yield item


def every(quarantine: Quarantine, chosen: Filter) -> Iterator[Item]:
    """Page by page."""
    cursor = None
    while True:
        page = quarantine.list(chosen, cursor=cursor, limit=MOST_LISTED)
        yield from page.items
        if page.next_cursor is None:
            return
        cursor = page.next_cursor
