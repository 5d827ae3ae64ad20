import threading
from datetime import UTC, datetime

import numpy as np
import pytest

from service.judgements import Judgements
from service.quarantine.backlog import Backlog, Captured

BYTES_EACH = 4 * 4


def captured(count: int) -> Captured:
    ones = np.ones(count, np.float32)
    return Captured(
        images=np.arange(count * 4, dtype=np.float32).reshape(count, 1, 2, 2),
        judgements=Judgements(
            np.arange(count), ones[:, None], ones, ones, ones > 0, ("likelihood",), ones[:, None], ones[:, None]
        ),
        drawn=np.zeros(count, np.bool_),
        model_name="digits",
        model_version="v1",
        labels=("0",),
        false_alarm_rate=0.05,
        request_id="request",
        principal="me",
        judged_at=datetime.now(UTC),
    )


@pytest.mark.parametrize(
    "backlog",
    [Backlog(capacity=5, max_bytes=10**6), Backlog(capacity=10**6, max_bytes=5 * BYTES_EACH + 1)],
    ids=["images", "bytes"],
)
def test_it_takes_what_there_is_room_for_and_no_more(backlog):
    assert [backlog.put(captured(3)), backlog.put(captured(3)), backlog.put(captured(1))] == [3, 2, 0]
    assert backlog.num_images == 5
    first, second = backlog.take(0), backlog.take(0)
    assert (len(first), len(second)) == (3, 2)
    assert second.images.base is None, "a view would keep all that was dropped alive"
    np.testing.assert_array_equal(second.judgements.class_index, [0, 1])
    assert (backlog.take(0), backlog.num_images) == (None, 0)
    assert backlog.put(captured(5)) == 5


def test_whoever_waits_is_woken_by_what_comes_and_by_the_end():
    backlog = Backlog(capacity=5, max_bytes=10**6)
    taken = []

    def take() -> None:
        while not backlog.ended:
            taken.append(backlog.take(60))

    thread = threading.Thread(target=take)
    thread.start()
    backlog.put(captured(1))
    backlog.close()
    thread.join(30)
    assert not thread.is_alive()
    assert [len(found) for found in taken if found is not None] == [1]
    assert backlog.put(captured(1)) == 0
