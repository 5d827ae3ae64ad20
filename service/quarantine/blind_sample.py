"""Which of what is kept may calibrate: the blind sample of a version's ordinary traffic.

`detectors.recalibration` says why it must be these.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from model.errors import CalibrationError
from service.quarantine.quarantine import MOST_LISTED, Quarantine
from service.quarantine.records import UNREVIEWED, Filter, Item, State
from service.quarantine.removal import BLIND

FOUND_OUT = (State.CONFIRMED_ADVERSARIAL, State.ABNORMAL)


@dataclass(frozen=True, kw_only=True, slots=True)
class Reviewed:
    """ordinary: what may be added. num_found_out: how many of the blind sample are no ordinary images.

    num_cut: how many of it are older than one that left it, so that they are no fair sample any more.

    false_positives and found_out: all that were reviewed as such, of the sample or not; to show what becomes of them.
    """

    ordinary: tuple[Item, ...]
    num_found_out: int
    num_cut: int
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
    kept = [item for why in BLIND for item in every(quarantine, chosen.model_copy(update={"why": why}))]
    # Of what is older, the reviewed ones expired first, and somebody chose what to delete: no fair sample is left.
    complete_after = quarantine.last_removed(model, version) or ""
    sample = [item for item in kept if item.id > complete_after]
    _check_decided(sample)
    found_out = [item for state in FOUND_OUT for item in _with_bytes(quarantine, chosen, state)]
    return Reviewed(
        ordinary=tuple(item for item in sample if item.state not in FOUND_OUT),
        num_found_out=sum(item.state in FOUND_OUT for item in sample),
        num_cut=len(kept) - len(sample),
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
