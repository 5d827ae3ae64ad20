import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.batching import Batcher
from service.errors import InferenceError, NotReadyError, OverloadedError
from service.judgements import Judgements

TIMEOUT = 30
FAULTY, FATAL = -1, -2


def images_of(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.float32).reshape(-1, 1, 1, 1)


class Judge:
    """Says of each image what its value is, and remembers each batch; a given gate holds the first one."""

    def __init__(self, hold: Callable[[], None] = lambda: None):
        self.batches: list[list[int]] = []
        self._hold = hold

    def __call__(self, images: Tensor) -> Judgements:
        values = images.flatten().to(torch.int64).numpy()
        self.batches.append(values.tolist())
        if len(self.batches) == 1:
            self._hold()
        if FAULTY in values:
            raise RuntimeError("planted")
        if FATAL in values:
            raise SystemExit
        column = values.astype(np.float32)
        return Judgements(
            values,
            column[:, None],
            column,
            column,
            values > 0,
            ("same",),
            column[:, None],
            column[:, None],
        )


MakeBatcher = Callable[..., Batcher]


@pytest.fixture
def make_batcher() -> Iterator[MakeBatcher]:
    made: list[Batcher] = []

    def make(judge: Judge, **given: float) -> Batcher:
        options = {"max_batch_size": 4, "max_wait_seconds": 0.0, "capacity": 100, **given}
        made.append(Batcher(judge, **options))
        return made[-1]

    yield make
    for batcher in made:
        batcher.close(TIMEOUT)


@pytest.fixture
def held(gate, make_batcher):
    """A batcher whose device is taken by the image 1000 until the gate opens."""

    def hold(**given):
        judge = Judge(gate.pass_through)
        batcher = make_batcher(judge, **given)
        first = batcher.submit(images_of(1000))
        gate.await_arrival()
        return batcher, judge, first

    return hold


def test_an_idle_worker_starts_at_once_with_a_batch_that_is_not_full(make_batcher):
    judge = Judge()
    batcher = make_batcher(judge, max_wait_seconds=3600)
    assert batcher.submit(images_of(7)).result(TIMEOUT).class_index.tolist() == [7]
    assert judge.batches == [[7]]


def test_a_busy_worker_takes_all_that_came_meanwhile(held, gate):
    batcher, judge, _ = held()
    futures = [batcher.submit(images_of(value)) for value in (1, 2, 3)]
    gate.open()
    assert [future.result(TIMEOUT).class_index.tolist() for future in futures] == [[1], [2], [3]]
    assert judge.batches == [[1000], [1, 2, 3]]


def test_a_busy_worker_collects_until_the_batch_is_full(held, gate):
    batcher, judge, first = held(max_wait_seconds=3600)
    early = batcher.submit(images_of(1))
    gate.open()
    first.result(TIMEOUT)
    late = batcher.submit(images_of(2, 3, 4))
    assert early.result(TIMEOUT).class_index.tolist() == [1]
    assert late.result(TIMEOUT).class_index.tolist() == [2, 3, 4]
    assert judge.batches == [[1000], [1, 2, 3, 4]]


def test_a_busy_worker_collects_no_longer_than_it_may(held, gate):
    batcher, judge, _ = held(max_wait_seconds=0.01)
    future = batcher.submit(images_of(1))
    gate.open()
    assert future.result(TIMEOUT).class_index.tolist() == [1]
    assert judge.batches == [[1000], [1]]


def test_a_full_queue_refuses_at_once_and_takes_again_once_there_is_room(held, gate):
    batcher, judge, _ = held(capacity=3)
    accepted = batcher.submit(images_of(1, 2))
    with pytest.raises(OverloadedError, match="2 images wait; the limit is 3"):
        batcher.submit(images_of(3, 4))
    assert batcher.depth == 2
    gate.open()
    accepted.result(TIMEOUT)
    assert batcher.submit(images_of(5)).result(TIMEOUT).class_index.tolist() == [5]
    assert judge.batches == [[1000], [1, 2], [5]]


def test_cancelled_work_never_reaches_the_device_and_frees_its_place(held, gate):
    batcher, judge, _ = held(capacity=3)
    dropped, kept = batcher.submit(images_of(1, 2)), batcher.submit(images_of(3))
    assert dropped.cancel()
    assert batcher.depth == 1
    also_kept = batcher.submit(images_of(4, 5))
    gate.open()
    wait([kept, also_kept], TIMEOUT)
    assert judge.batches == [[1000], [3, 4, 5]]


def test_work_cancelled_on_the_device_is_forgotten_and_the_worker_goes_on(held, gate):
    batcher, _, first = held()
    assert first.cancel()
    gate.open()
    assert batcher.submit(images_of(1)).result(TIMEOUT).class_index.tolist() == [1]


def test_a_failure_fails_its_batch_alone(held, gate, caplog):
    batcher, judge, first = held(max_batch_size=2)
    bad, neighbour, other = (batcher.submit(images_of(value)) for value in (FAULTY, 1, 2))
    gate.open()
    for future in (bad, neighbour):
        with pytest.raises(InferenceError):
            future.result(TIMEOUT)
    assert first.result(TIMEOUT).class_index.tolist() == [1000]
    assert other.result(TIMEOUT).class_index.tolist() == [2]
    assert judge.batches == [[1000], [FAULTY, 1], [2]]
    assert "planted" in caplog.text


def test_what_is_left_of_a_failed_request_is_dropped(held, gate):
    batcher, judge, _ = held(max_batch_size=2)
    large, next_one = batcher.submit(images_of(FAULTY, 1, 2, 3)), batcher.submit(images_of(4))
    gate.open()
    assert next_one.result(TIMEOUT).class_index.tolist() == [4]
    assert isinstance(large.exception(TIMEOUT), InferenceError)
    assert judge.batches == [[1000], [FAULTY, 1], [4]]
    assert batcher.depth == 0


def test_a_request_larger_than_a_batch_is_split_and_joined_in_order(make_batcher):
    judge = Judge()
    judgements = make_batcher(judge).submit(images_of(*range(10))).result(TIMEOUT)
    assert judge.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert judgements.class_index.tolist() == list(range(10))
    assert judgements.evidence_scores[:, 0].tolist() == list(range(10))


def test_closing_judges_what_waits_and_takes_nothing_more(held, gate):
    batcher, judge, first = held(max_wait_seconds=3600)
    waiting = [batcher.submit(images_of(value)) for value in (1, 2)]
    closer = threading.Thread(target=batcher.close)
    closer.start()
    gate.open()
    closer.join(TIMEOUT)
    assert [future.result(0).class_index.tolist() for future in (first, *waiting)] == [[1000], [1], [2]]
    assert judge.batches == [[1000], [1, 2]]
    assert not batcher.alive
    with pytest.raises(NotReadyError):
        batcher.submit(images_of(3))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_ends_fails_all_that_waits(held, gate):
    batcher, _, _ = held(max_batch_size=1)
    fatal, waiting = batcher.submit(images_of(FATAL)), batcher.submit(images_of(1))
    gate.open()
    for future in (fatal, waiting):
        with pytest.raises(InferenceError):
            future.result(TIMEOUT)
    assert not batcher.alive
    with pytest.raises(NotReadyError):
        batcher.submit(images_of(2))


def test_each_batch_is_observed_with_the_waits_of_the_requests_that_begin_in_it(make_batcher):
    seen: list[tuple[int, int]] = []
    batcher = make_batcher(Judge(), on_batch=lambda size, waits: seen.append((size, len(waits))))
    batcher.submit(images_of(*range(6))).result(TIMEOUT)
    assert seen == [(4, 1), (2, 0)]


@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=40), max_batch_size=st.integers(1, 8))
@settings(max_examples=30, deadline=None)
def test_answers_never_cross(sizes, max_batch_size):
    batcher = Batcher(Judge(), max_batch_size=max_batch_size, max_wait_seconds=0.0, capacity=1000)
    starts = np.cumsum([0, *sizes]).tolist()
    asked = [list(range(start, start + size)) for start, size in zip(starts, sizes, strict=False)]

    def ask(values: list[int]) -> list[int]:
        return batcher.submit(images_of(*values)).result(TIMEOUT).class_index.tolist()

    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ask, asked)) == asked
    finally:
        batcher.close(TIMEOUT)
