"""The machine above its ceiling is noticed, and none at it."""
from __future__ import annotations

import asyncio

from cloison.warden.watch import until_over


def test_more_than_the_ceiling_is_noticed_and_the_ceiling_is_not() -> None:
    looked: list[int] = []

    def used(pid: int) -> int:
        looked.append(pid)
        return 99 + len(looked)

    assert asyncio.run(until_over(7, 102, used=used, period=0)) == 103
    assert looked == [7] * 4
