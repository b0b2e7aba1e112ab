"""Which requests have to wait, and which qube goes after others: by numbers, the clock is the test's."""
from __future__ import annotations

import pytest

from cloison.qrexec.host.budget import BURST, CROWD_BURST, CROWD_RATE, FEW, FLOOD_BURST, FLOOD_RATE, RATE, Budget


def asks(budget: Budget, count: int, *, every: float, open_calls: int, now: float = 0.0) -> tuple[float, float]:
    """Longest wait and longest time behind, of requests at even distances. Each waits as it is told to."""
    waits, behind = 0.0, 0.0
    for _ in range(count):
        cost = budget.request(now, open_calls)
        waits, behind = max(waits, cost.wait), max(behind, cost.behind)
        now += max(every, cost.wait)
    return waits, behind


@pytest.mark.parametrize("open_calls", [0, 1, FEW])
def test_one_call_after_the_other_costs_nothing(open_calls: int) -> None:
    assert asks(Budget(), 20000, every=1 / RATE, open_calls=open_calls) == (0.0, 0.0)


def test_two_hundred_at_once_are_heard_within_three_seconds() -> None:
    budget, now = Budget(), 0.0
    for _ in range(200):
        now += budget.request(now, 200).wait
    assert now < 3.0


def test_ten_thousand_beside_few_open_calls_are_heard_at_the_rate() -> None:
    budget, now = Budget(), 0.0
    for _ in range(10000):
        cost = budget.request(now, FEW)
        assert cost.behind == 0.0
        now += cost.wait
    assert now == pytest.approx((10000 - BURST) / RATE, rel=0.01)


@pytest.mark.parametrize("open_calls", [200, FEW + 1])
def test_ten_thousand_at_once_are_a_flood_until_the_qube_is_calm(open_calls: int) -> None:
    budget, now = Budget(), 0.0
    behind_until = 0.0
    for _ in range(10000):
        cost = budget.request(now, open_calls)
        behind_until = max(behind_until, now + cost.behind)
        now += cost.wait
    assert now == pytest.approx((10000 - FLOOD_BURST - CROWD_BURST) / FLOOD_RATE, rel=0.01)
    assert now < behind_until <= now + CROWD_BURST / CROWD_RATE
    assert budget.request(behind_until, open_calls).behind == 0.0


def test_a_flood_that_hides_between_few_open_calls_is_still_one() -> None:
    """Heard seldom, it has few calls open; that gives it no more than a pause would."""
    budget, now = Budget(), 0.0
    for _ in range(2000):
        now += 0.005
        now += budget.request(now, 200).wait
    begun = now
    for number in range(2000):
        now += 0.005
        now += budget.request(now, 200 if number % 100 < 3 else 0).wait
    assert 2000 / (now - begun) < 1.2 * FLOOD_RATE


@pytest.mark.parametrize(("count", "floods"), [(CROWD_BURST, False), (CROWD_BURST + 1, True)])
def test_a_crowd_may_come_at_once_up_to_its_bound(count: int, floods: bool) -> None:
    _, behind = asks(Budget(), count, every=0.0, open_calls=FEW + 1)
    assert (behind > 0) == floods


def test_many_open_calls_and_few_new_ones_are_no_flood() -> None:
    """A browser's connections through qubes.ConnectTCP: fifty are open, and ten a second come and go."""
    assert asks(Budget(), 10000, every=0.1, open_calls=50) == (0.0, 0.0)


def test_a_burst_may_come_again_when_there_was_time() -> None:
    budget = Budget()
    asks(budget, 5000, every=0.001, open_calls=200)
    assert asks(budget, CROWD_BURST, every=0.0, open_calls=200, now=1000.0) == (0.0, 0.0)
