from datetime import UTC, datetime, timedelta

import pytest

from service.quarantine import State
from service.quarantine.retention import Retention
from tests.service.quarantine.conftest import noise

PLENTY = 10**9


@pytest.fixture
def retention(database, store):
    def make(*, max_items: int = PLENTY, max_bytes: int = PLENTY) -> Retention:
        return Retention(database, store, max_items=max_items, max_bytes=max_bytes)

    return make


def left(quarantine) -> list[str]:
    return [item.id for item in quarantine.list(limit=200).items][::-1]


def test_what_is_past_its_time_goes_whatever_its_state(quarantine, kept, retention):
    now = datetime.now(UTC)
    old = kept(minutes=1, expires_at=now - timedelta(seconds=1), state=State.IN_REVIEW)
    young = kept(minutes=2, expires_at=now + timedelta(hours=1))
    assert retention().expire() == 1
    assert left(quarantine) == [young.id]
    (line,) = quarantine.audit(old.id)
    assert (line.who, line.action, line.from_state) == ("retention", "expired", State.IN_REVIEW)


def test_beyond_the_number_the_oldest_reviewed_go_first_then_the_oldest(quarantine, kept, retention):
    states = [State.NEW, State.ABNORMAL, State.IN_REVIEW, State.RELEASED, State.NEW]
    there = [kept(minutes=minute, state=state).id for minute, state in enumerate(states)]
    assert retention(max_items=4).expire() == 1
    assert left(quarantine) == [there[0], there[2], there[3], there[4]]
    assert retention(max_items=2).expire() == 2
    assert left(quarantine) == [there[2], there[4]]


def test_beyond_the_bytes_as_many_go_as_must(quarantine, kept, retention):
    there = [kept(minutes=minute) for minute in range(5)]
    extent = retention().extent()
    assert (extent.num_items, extent.num_bytes) == (5, sum(item.num_bytes for item in there))
    assert retention(max_bytes=extent.num_bytes).expire() == 0
    assert retention(max_bytes=extent.num_bytes - 1).expire() == 1
    assert left(quarantine) == [item.id for item in there[1:]]
    assert retention(max_bytes=0).expire() == 4
    assert retention().extent().num_bytes == 0


def test_bytes_that_several_items_share_count_once(quarantine, kept, retention):
    image = noise(1)
    one, two = kept(image, minutes=1), kept(image, minutes=2)
    assert retention(max_bytes=one.num_bytes).expire() == 0
    assert left(quarantine) == [one.id, two.id]


def test_hundreds_expire_in_turns(quarantine, kept, retention):
    for minute in range(150):
        kept(noise(1), minutes=minute)
    assert retention(max_items=3).expire() == 147
    assert len(left(quarantine)) == 3


def test_files_without_a_row_are_swept_and_others_are_not(quarantine, kept, store, retention):
    item = kept()
    store.put("f" * 64, "image/png", b"left by a process that was killed")
    assert retention().sweep() == 0, "its row may still be on its way"
    assert retention().sweep(older_than=timedelta(seconds=-5)) == 1
    assert quarantine.image(item.id)
