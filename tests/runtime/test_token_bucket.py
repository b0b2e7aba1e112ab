"""A token bucket, by numbers: the clock is the test's."""
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloison.runtime.token_bucket import TokenBucket


def test_so_many_at_once_then_one_an_interval() -> None:
    bucket = TokenBucket(burst=3, rate=2.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait(10.0) == pytest.approx(0.5) and bucket.full_in(10.0) == pytest.approx(1.5)
    assert not bucket.take(10.4)
    assert bucket.take(10.6) and not bucket.take(10.6)


def test_what_is_refused_costs_nothing() -> None:
    bucket = TokenBucket(burst=1, rate=1.0)
    assert bucket.take(0.0)
    assert not any(bucket.take(0.5) for _ in range(1000))
    assert bucket.take(1.0)


def test_it_never_holds_more_than_the_burst() -> None:
    bucket = TokenBucket(burst=2, rate=1.0)
    bucket.take(0.0)
    assert [bucket.take(1e9) for _ in range(3)] == [True, True, False]
    assert TokenBucket(burst=2, rate=1.0).full_in(5.0) == 0.0


@given(st.integers(1, 50), st.integers(1, 1000), st.lists(st.floats(0, 10, allow_subnormal=False), max_size=200))
def test_no_stretch_of_time_gets_more_than_burst_and_rate(burst: int, rate: int, steps: list[float]) -> None:
    bucket, now, taken = TokenBucket(burst, rate), 1000.0, 0
    begun = now
    for step in steps:
        now += step
        taken += bucket.take(now)
    assert taken <= burst + rate * (now - begun) + 1e-3


def test_what_is_owed_is_waited_for() -> None:
    bucket = TokenBucket(burst=2, rate=1.0)
    for _ in range(5):
        bucket.spend(0.0)
    assert bucket.wait(0.0) == pytest.approx(4.0) and not bucket.take(3.9) and bucket.take(4.1)


@given(st.integers(1, 50), st.integers(1, 1000), st.lists(st.floats(0, 1), max_size=100))
def test_who_waits_as_told_gets_a_token(burst: int, rate: int, steps: list[float]) -> None:
    bucket, now = TokenBucket(burst, rate), 0.0
    for step in steps:
        now += step
        bucket.take(now)
    later = now + bucket.wait(now) + 1e-9
    assert bucket.take(later)
