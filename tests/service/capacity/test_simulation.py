"""The simulated replica against closed forms of queueing theory, and against the rules of the batcher."""

import math

import numpy as np
import pytest

from service.capacity.simulation import Outcome, Replica, simulate

NUM_REQUESTS = 16_000


def one_at_a_time(*, workers: int, seconds) -> Replica:
    """A plain queue: nothing is collected, HTTP is free, and there is a processor for each worker."""
    return Replica(
        request_seconds=lambda _: 0.0,
        batch_seconds=seconds,
        cores=workers,
        workers=workers,
        max_batch_size=1,
        max_wait_seconds=0.0,
        queue_capacity=10**9,
    )


def run(replica: Replica, rate: float, *, images: int = 1, requests: int = NUM_REQUESTS, seed: int = 0) -> Outcome:
    generator = np.random.default_rng(seed)
    return simulate(
        replica,
        requests_per_second=rate,
        images_per_request=images,
        num_requests=requests,
        generator=generator,
    )


@pytest.mark.parametrize("load", [0.3, 0.6, 0.8])
def test_waits_are_those_of_m_d_1(load):
    """Pollaczek and Khinchine: E[W] = load * s / (2 (1 - load)) where every service takes s."""
    found = run(one_at_a_time(workers=1, seconds=lambda _: 1.0), load)
    assert found.waits.mean() == pytest.approx(load / (2 * (1 - load)), rel=0.08)
    assert (found.waits < 1e-9).mean() == pytest.approx(1 - load, abs=0.02)
    assert found.busy_share == pytest.approx(load, rel=0.03)


@pytest.mark.parametrize(("workers", "load"), [(1, 0.6), (2, 0.7), (4, 0.75)])
def test_waits_are_those_of_m_m_c(workers, load):
    """Erlang C: E[W] = C(c, a) / (c mu - lambda), and waits beyond t have the share C exp(-(c mu - lambda) t)."""
    draws = np.random.default_rng(1)
    found = run(one_at_a_time(workers=workers, seconds=lambda _: float(draws.exponential())), load * workers)
    waiting_share, spare = erlang_c(workers, load * workers), workers * (1 - load)
    assert found.waits.mean() == pytest.approx(waiting_share / spare, rel=0.12)
    assert found.wait(99) == pytest.approx(math.log(waiting_share / 0.01) / spare, rel=0.15)


def erlang_c(servers: int, erlangs: float) -> float:
    """The chance that an arrival waits."""
    terms = [erlangs**count / math.factorial(count) for count in range(servers + 1)]
    last = terms[-1] * servers / (servers - erlangs)
    return last / (sum(terms[:-1]) + last)


def test_erlang_c_has_its_textbook_values():
    assert erlang_c(1, 0.7) == pytest.approx(0.7)  # one server: the load
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)  # two servers: load^2 * 2 / (1 + load), load a half


def test_batches_share_their_fixed_cost_and_no_request_is_faster_than_its_work():
    replica = Replica(
        request_seconds=lambda images: 0.0002,
        batch_seconds=lambda images: 0.002 + 0.0004 * images,
        cores=2,
        workers=2,
    )
    found = run(replica, 1500, requests=8_000)
    assert found.latencies.min() >= 0.0002 + 0.0024 - 1e-9
    assert 1 < found.images_per_batch < 64
    work = 1500 * (0.002 / found.images_per_batch + 0.0004) / 2
    assert work < found.busy_share < 1  # longer on the clock where the event loop takes its processor


def test_an_idle_replica_starts_at_once_and_a_busy_one_collects():
    replica = one_at_a_time(workers=1, seconds=lambda images: 0.001 * images)
    quiet = Replica(**{**as_dict(replica), "max_batch_size": 64, "max_wait_seconds": 0.5})
    found = run(quiet, 0.1, requests=500)
    assert np.median(found.waits) == 0.0
    crowded = Replica(**{**as_dict(quiet), "batch_seconds": lambda images: 1.0})
    found = run(crowded, 20, requests=2_000)
    assert found.images_per_batch == pytest.approx(20, rel=0.15)  # what comes in the second that a batch takes
    assert found.wait(99) < 2.0


def as_dict(replica: Replica) -> dict[str, object]:
    return {name: getattr(replica, name) for name in Replica.__dataclass_fields__}


def test_a_full_queue_refuses_at_once():
    replica = Replica(**{**as_dict(one_at_a_time(workers=1, seconds=lambda _: 1.0)), "queue_capacity": 4})
    found = run(replica, 3, requests=3_000)
    assert found.refused == pytest.approx(2_700 * 2 / 3, rel=0.05)
    assert found.waits.max() <= 4 + 1e-9


def test_requests_larger_than_a_batch_are_split_and_joined():
    plain = one_at_a_time(workers=1, seconds=lambda images: 0.01 * images)
    replica = Replica(**{**as_dict(plain), "max_batch_size": 16})
    found = run(replica, 0.5, images=40, requests=500)
    assert found.latencies.min() == pytest.approx(0.4)  # 16 + 16 + 8
    assert found.images_per_batch == pytest.approx(40 / 3, rel=0.05)


def test_the_event_loop_takes_the_processor_from_the_worker():
    """On one processor a request is taken in while a batch runs, which then ends later by as much."""
    replica = Replica(
        request_seconds=lambda _: 0.1, batch_seconds=lambda _: 0.3, cores=1, workers=1, max_batch_size=1
    )
    found = run(replica, 1.0, requests=5_000)
    shared = found.busy_share
    apart = run(Replica(**{**as_dict(replica), "cores": 2}), 1.0, requests=5_000).busy_share
    assert apart == pytest.approx(0.3, rel=0.05)
    assert shared == pytest.approx(0.3 / 0.9, rel=0.05)  # the loop has a tenth of the processor


def test_a_loop_that_cannot_keep_up_makes_callers_wait_where_the_queue_does_not_see_it():
    replica = Replica(
        request_seconds=lambda _: 0.001, batch_seconds=lambda images: 0.0001 * images, cores=8, workers=4
    )
    found = run(replica, 950, requests=10_000)
    assert found.wait(99) > 0.01
    assert found.queue_wait(99) < 0.003
    assert found.busy_share < 0.1


def test_handing_a_batch_over_costs_the_loop_and_small_batches_pay_more_of_it():
    plain = one_at_a_time(workers=1, seconds=lambda images: 0.001 * images)
    alone = Replica(**{**as_dict(plain), "handover_seconds": 0.001})
    assert run(alone, 400, requests=3_000).latencies.min() == pytest.approx(0.002)
    assert run(alone, 400, requests=3_000).busy_share == pytest.approx(0.8, rel=0.05)
    together = Replica(**{**as_dict(alone), "max_batch_size": 64})
    assert run(together, 900, requests=3_000).images_per_batch > 5  # which leaves the loop time for 900 a second
