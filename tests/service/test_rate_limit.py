"""Token buckets against a written-out reference, and their bounds."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import rate_limit
from service.rate_limit import OVERFLOW, TokenBuckets


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Reference:
    """Tokens that flow in and are taken, as one would write it down."""

    def __init__(self, *, per_second: float, burst: int, now: float):
        self.per_second, self.burst, self.tokens, self.now = per_second, burst, float(burst), now

    def at(self, now: float) -> None:
        self.tokens = min(self.burst, self.tokens + (now - self.now) * self.per_second)
        self.now = now

    def take(self) -> bool:
        granted = self.tokens >= 1 - 1e-9
        self.tokens -= granted
        return granted


Steps = st.lists(st.tuples(st.sampled_from([0.0, 0.125, 0.5, 2.0, 64.0]), st.integers(0, 9)), max_size=60)


@given(per_second=st.sampled_from([0.5, 2.0, 16.0]), burst=st.integers(1, 8), steps=Steps)
def test_it_grants_what_the_reference_grants(per_second, burst, steps):
    clock = Clock()
    buckets = TokenBuckets(per_second=per_second, burst=burst, clock=clock)
    reference = Reference(per_second=per_second, burst=burst, now=clock.now)
    for pause, further in steps:
        clock.now += pause
        reference.at(clock.now)
        allowance = run(buckets.take("a"))
        assert allowance.granted == reference.take()
        if allowance.granted and further:
            allowance = run(buckets.charge("a", further))
            reference.tokens -= further
        assert allowance.remaining == max(0, int(reference.tokens + 1e-6))
        assert allowance.full_after_seconds == pytest.approx((burst - reference.tokens) / per_second, abs=1e-6)


def run(coroutine):
    """What a coroutine that never waits returns."""
    with pytest.raises(StopIteration) as caught:
        coroutine.send(None)
    return caught.value.value


@given(per_second=st.sampled_from([0.3, 7.0]), burst=st.integers(1, 5), debt=st.integers(0, 20))
def test_retry_after_is_the_first_moment_at_which_it_is_granted(per_second, burst, debt):
    clock = Clock()
    buckets = TokenBuckets(per_second=per_second, burst=burst, clock=clock)
    run(buckets.charge("a", burst + debt))
    wait = run(buckets.take("a")).retry_after_seconds
    assert wait == pytest.approx((1 + debt) / per_second)
    clock.now += wait - 1e-3
    assert not run(buckets.take("a")).granted
    clock.now += 2e-3
    assert run(buckets.take("a")).granted


def test_callers_do_not_share():
    buckets = TokenBuckets(per_second=1, burst=1, clock=Clock())
    assert run(buckets.take("a")).granted
    assert not run(buckets.take("a")).granted
    assert run(buckets.take("b")).granted


def test_memory_is_bounded_and_idle_callers_make_room(monkeypatch):
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 100)
    clock = Clock()
    buckets = TokenBuckets(per_second=1, burst=2, clock=clock)
    granted = [run(buckets.take(str(number))).granted for number in range(1000)]
    assert granted[:102] == [True] * 102  # a hundred of their own, two of the shared one
    assert not any(granted[102:])
    assert len(buckets) == 101
    clock.now += 3  # all are full again
    assert run(buckets.take("new")).granted
    assert len(buckets) == 1


def test_who_has_a_bucket_keeps_it_while_others_share(monkeypatch):
    monkeypatch.setattr(rate_limit, "MAX_BUCKETS", 1)
    buckets = TokenBuckets(per_second=1, burst=2, clock=Clock())
    run(buckets.take("own"))
    run(buckets.charge(OVERFLOW, 5))
    assert run(buckets.take("own")).granted
    assert not run(buckets.take("new")).granted


def test_the_policy_names_quota_and_window():
    assert TokenBuckets(per_second=4, burst=10).policy == '"images";q=10;w=3'
