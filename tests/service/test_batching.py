"""The queue over devices that judge when the test says so."""

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batching import Batcher, Outcome
from service.errors import (
    AbandonedError,
    DeadlineError,
    InferenceError,
    NotReadyError,
    OverloadedError,
    WorkerDiedError,
)
from service.jobs import Floats
from service.judgements import Judgements

JUDGED, FAILED, DIED, CANCELLED = "judged", "failed", "died", "cancelled"


def images_of(*values: int) -> Floats:
    return np.array(values, dtype=np.float32).reshape(-1, 1, 1, 1)


def judgements_of(values: list[int]) -> Judgements:
    column = np.array(values, dtype=np.float32)
    return Judgements(
        np.array(values),
        column[:, None],
        column,
        column,
        column > 0,
        ("same",),
        column[:, None],
        column[:, None],
    )


class Device:
    """Says of each image what its value is, once it is told to finish; remembers its batches."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self._done: Callable[[Outcome], None] | None = None

    def judge(self, images: Sequence[Floats], done: Callable[[Outcome], None]) -> None:
        assert self._done is None, "it has two batches at once"
        self.batches.append([int(value) for part in images for value in part.flatten()])
        self._done = done

    @property
    def busy(self) -> bool:
        return self._done is not None

    def finish(self, outcome: str = JUDGED) -> None:
        assert self._done is not None, "it has nothing to judge"
        done, self._done = self._done, None
        errors = {FAILED: InferenceError, DIED: WorkerDiedError}
        done(errors[outcome]("planted") if outcome in errors else judgements_of(self.batches[-1]))


class Watch:
    def __init__(self) -> None:
        self.started: list[tuple[int, int]] = []
        self.judged = 0

    def batch_started(self, size: int, wait_seconds: Sequence[float]) -> None:
        self.started.append((size, len(wait_seconds)))

    def batch_judged(self, judgements: Judgements, seconds: float) -> None:
        self.judged += len(judgements)


def make_batcher(*devices: Device, watch: Watch | None = None, **given: float) -> Batcher:
    options: dict[str, Any] = {"max_batch_size": 4, "max_wait_seconds": 0.0, "capacity": 100, **given}
    batcher = Batcher(observer=watch or Watch(), **options)
    for device in devices:
        batcher.attach(device)
    return batcher


def run(scenario: Callable[[], Coroutine[Any, Any, None]]) -> Any:
    """A test that runs the scenario on an event loop."""

    def test() -> None:
        asyncio.run(scenario())

    test.__name__ = scenario.__name__
    return test


async def values(future: asyncio.Future[Judgements]) -> list[int]:
    return [int(value) for value in (await future).class_index]


@run
async def test_an_idle_device_starts_at_once_with_a_batch_that_is_not_full():
    device = Device()
    batcher = make_batcher(device, max_wait_seconds=3600)
    future = batcher.submit(images_of(7))
    device.finish()
    assert await values(future) == [7]


@run
async def test_a_busy_device_takes_all_that_came_meanwhile():
    device = Device()
    batcher = make_batcher(device)
    futures = [batcher.submit(images_of(value)) for value in (1, 2, 3)]
    device.finish()
    device.finish()
    assert device.batches == [[1], [2, 3]]
    assert [await values(future) for future in futures] == [[1], [2], [3]]


@run
async def test_a_busy_device_collects_until_the_batch_is_full():
    device = Device()
    batcher = make_batcher(device, max_wait_seconds=3600)
    batcher.submit(images_of(0))
    early = batcher.submit(images_of(1))
    device.finish()
    assert not device.busy
    late = batcher.submit(images_of(2, 3, 4))
    device.finish()
    assert device.batches == [[0], [1, 2, 3, 4]]
    assert (await values(early), await values(late)) == ([1], [2, 3, 4])


@run
async def test_a_busy_device_collects_no_longer_than_it_may():
    device = Device()
    batcher = make_batcher(device, max_wait_seconds=0.01)
    batcher.submit(images_of(0))
    arrived = time.monotonic()
    batcher.submit(images_of(1))
    device.finish()
    while not device.busy:
        await asyncio.sleep(0)
    assert time.monotonic() - arrived >= 0.01
    assert device.batches == [[0], [1]]


@run
async def test_the_earliest_deadline_ends_collecting():
    device = Device()
    batcher = make_batcher(device, max_wait_seconds=3600)
    batcher.submit(images_of(0))
    future = batcher.submit(images_of(1), deadline=time.monotonic() + 0.05)
    device.finish()
    with pytest.raises(DeadlineError):
        await future
    assert device.batches == [[0]]


@run
async def test_a_full_queue_refuses_at_once_and_takes_again_once_there_is_room():
    device = Device()
    batcher = make_batcher(device, capacity=3)
    batcher.submit(images_of(0))
    batcher.submit(images_of(1, 2))
    with pytest.raises(OverloadedError, match="2 images wait; the limit is 3") as refusal:
        batcher.submit(images_of(3, 4))
    assert refusal.value.retry_after_seconds == 1
    assert batcher.depth == 2
    device.finish()
    batcher.submit(images_of(5))
    assert batcher.depth == 1


@run
async def test_cancelled_work_never_reaches_the_device_and_frees_its_place():
    device = Device()
    batcher = make_batcher(device, capacity=3)
    batcher.submit(images_of(0))
    dropped, _ = batcher.submit(images_of(1, 2)), batcher.submit(images_of(3))
    dropped.cancel()
    await asyncio.sleep(0)
    assert batcher.depth == 1
    batcher.submit(images_of(4, 5))
    device.finish()
    assert device.batches == [[0], [3, 4, 5]]


@run
async def test_work_cancelled_on_the_device_is_forgotten_and_the_device_goes_on():
    device = Device()
    batcher = make_batcher(device)
    batcher.submit(images_of(0)).cancel()
    device.finish()
    future = batcher.submit(images_of(1))
    device.finish()
    assert await values(future) == [1]


@run
async def test_expired_work_never_reaches_the_device():
    device = Device()
    batcher = make_batcher(device)
    batcher.submit(images_of(0))
    late = batcher.submit(images_of(1), deadline=time.monotonic() + 0.01)
    batcher.submit(images_of(2))
    with pytest.raises(DeadlineError):
        await late
    device.finish()
    assert device.batches == [[0], [2]]


@run
async def test_work_whose_caller_has_gone_never_reaches_the_device():
    device = Device()
    batcher = make_batcher(device)
    batcher.submit(images_of(0))
    gone = batcher.submit(images_of(1), abandoned=lambda: True)
    here = batcher.submit(images_of(2), abandoned=lambda: False)
    await asyncio.sleep(0.02)  # callers are not asked after shorter waits
    device.finish()
    assert device.batches == [[0], [2]]
    with pytest.raises(AbandonedError):
        await gone
    device.finish()
    assert await values(here) == [2]


@run
async def test_what_is_bad_in_a_batch_fails_alone():
    device = Device()
    batcher = make_batcher(device)
    batcher.submit(images_of(0))
    bad, good = batcher.submit(images_of(-1)), batcher.submit(images_of(1, 2))
    device.finish()
    device.finish(FAILED)
    device.finish(FAILED)
    device.finish()
    assert device.batches == [[0], [-1, 1, 2], [-1], [1, 2]]
    with pytest.raises(InferenceError, match="planted"):
        await bad
    assert await values(good) == [1, 2]


@run
async def test_what_is_left_of_a_failed_request_is_dropped():
    device = Device()
    batcher = make_batcher(device, max_batch_size=2)
    large, next_one = batcher.submit(images_of(-1, 1, 2, 3)), batcher.submit(images_of(4))
    device.finish(FAILED)
    device.finish()
    assert device.batches == [[-1, 1], [4]]
    with pytest.raises(InferenceError):
        await large
    assert await values(next_one) == [4]
    await asyncio.sleep(0)
    assert batcher.depth == 0


@run
async def test_what_a_device_died_over_is_judged_first_by_the_next_one_each_request_alone():
    first, second = Device(), Device()
    batcher = make_batcher(first)
    batcher.submit(images_of(0))
    futures = [batcher.submit(images_of(value)) for value in (1, 2)]
    first.finish()
    futures.append(batcher.submit(images_of(3)))
    first.finish(DIED)
    assert batcher.num_devices == 0
    batcher.attach(second)
    for _ in range(3):
        second.finish()
    assert (first.batches, second.batches) == ([[0], [1, 2]], [[1], [2], [3]])
    assert [await values(future) for future in futures] == [[1], [2], [3]]


@run
async def test_what_two_devices_died_over_fails():
    devices = [Device(), Device(), Device()]
    batcher = make_batcher(devices[0])
    fatal = batcher.submit(images_of(-1))
    other = batcher.submit(images_of(1))
    devices[0].finish(DIED)
    batcher.attach(devices[1])
    devices[1].finish(DIED)
    batcher.attach(devices[2])
    devices[2].finish()
    with pytest.raises(InferenceError, match="died over it twice"):
        await fatal
    assert await values(other) == [1]


@run
async def test_without_a_device_requests_wait_for_one_until_they_are_told_that_none_comes():
    batcher = make_batcher()
    waiting = batcher.submit(images_of(1))
    batcher.refuse("it does not start")
    with pytest.raises(NotReadyError, match="does not start"):
        await waiting
    with pytest.raises(NotReadyError, match="does not start"):
        batcher.submit(images_of(2))
    device = Device()
    batcher.attach(device)
    future = batcher.submit(images_of(3))
    device.finish()
    assert await values(future) == [3]


@run
async def test_a_deadline_without_a_device_says_that_it_was_not_the_requests_fault():
    with pytest.raises(NotReadyError, match="restarted"):
        await make_batcher().submit(images_of(1), deadline=time.monotonic() + 0.01)


@run
async def test_an_idle_device_that_died_gets_nothing_more():
    dead, alive = Device(), Device()
    batcher = make_batcher(dead, alive)
    batcher.detach(dead)
    batcher.submit(images_of(1))
    assert (dead.batches, alive.batches, batcher.num_devices) == ([], [[1]], 1)


@run
async def test_a_request_larger_than_a_batch_is_split_and_joined_in_order():
    device = Device()
    future = make_batcher(device).submit(images_of(*range(10)))
    for _ in range(3):
        device.finish()
    assert device.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert await values(future) == list(range(10))


@run
async def test_idle_devices_share_a_large_request_and_may_finish_in_any_order():
    first, second = Device(), Device()
    future = make_batcher(first, second, max_batch_size=64).submit(images_of(*range(40)))
    assert (len(first.batches[0]), len(second.batches[0])) == (20, 20)
    second.finish()
    first.finish()
    judgements = await future
    assert judgements.class_index.tolist() == list(range(40))
    assert judgements.evidence_scores[:, 0].tolist() == list(range(40))


@run
async def test_while_one_device_is_busy_the_next_starts_with_enough_or_after_the_wait():
    first, second = Device(), Device()
    batcher = make_batcher(first, second, max_batch_size=64, max_wait_seconds=3600)
    batcher.submit(images_of(0))
    for value in range(1, 8):
        batcher.submit(images_of(value))
    assert (first.busy, second.busy) != (True, True)
    batcher.submit(images_of(8))
    assert sorted([first.batches, second.batches]) == [[[0]], [[1, 2, 3, 4, 5, 6, 7, 8]]]
    batcher = make_batcher(Device(), last := Device(), max_wait_seconds=0.01)
    batcher.submit(images_of(0))
    batcher.submit(images_of(1))
    while not (last.busy and batcher.depth == 0):
        await asyncio.sleep(0)


@run
async def test_draining_judges_what_waits_and_takes_nothing_more():
    device = Device()
    batcher = make_batcher(device, max_wait_seconds=3600)
    futures = [batcher.submit(images_of(value)) for value in (0, 1)]
    draining = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReadyError):
        batcher.submit(images_of(2))
    device.finish()
    await asyncio.sleep(0)
    assert not draining.done()
    device.finish()
    await draining
    assert [await values(future) for future in futures] == [[0], [1]]


@run
async def test_each_batch_is_observed_with_the_waits_of_the_requests_that_begin_in_it():
    watch, device = Watch(), Device()
    make_batcher(device, watch=watch).submit(images_of(*range(6)))
    device.finish()
    device.finish()
    assert (watch.started, watch.judged) == ([(4, 1), (2, 0)], 6)


OUTCOMES = st.sampled_from([JUDGED, JUDGED, JUDGED, FAILED, DIED, CANCELLED])


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40),
    outcomes=st.lists(OUTCOMES, max_size=60),
    num_devices=st.integers(1, 3),
    max_batch_size=st.integers(1, 8),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=150, deadline=None)
def test_whatever_fails_answers_never_cross_and_everybody_is_answered(
    sizes, outcomes, num_devices, max_batch_size, seed
):
    starts = np.cumsum([0, *sizes]).tolist()
    asked = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]

    async def scenario() -> None:
        devices = [Device() for _ in range(num_devices)]
        batcher = make_batcher(*devices, max_batch_size=max_batch_size, capacity=1000)
        futures = [batcher.submit(images_of(*request)) for request in asked]
        planned, draw = iter(outcomes), random.Random(seed)
        while busy := [device for device in devices if device.busy]:
            device, outcome = draw.choice(busy), next(planned, JUDGED)
            if outcome == CANCELLED:
                draw.choice(futures).cancel()
            device.finish(outcome)
            if outcome == DIED:
                devices.remove(device)
                devices.append(Device())
                batcher.attach(devices[-1])
            await asyncio.sleep(0)
        found = await asyncio.gather(*futures, return_exceptions=True)
        for request, answer in zip(asked, found, strict=True):
            if isinstance(answer, Judgements):
                assert answer.class_index.tolist() == request
            else:
                assert isinstance(answer, InferenceError | asyncio.CancelledError)
        assert batcher.depth == 0
        assert FAILED in outcomes or DIED in outcomes or not any(isinstance(a, InferenceError) for a in found)

    asyncio.run(scenario())
