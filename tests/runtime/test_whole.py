"""Work that is waited for whole, whoever is cancelled meanwhile."""
from __future__ import annotations

import asyncio

import pytest

from cloison.runtime.whole import whole


def test_what_it_gives_or_raises() -> None:
    async def give(value: int) -> int:
        await asyncio.sleep(0)
        if not value:
            raise ValueError("nothing")
        return value

    assert asyncio.run(whole(give(3))) == 3
    with pytest.raises(ValueError, match="nothing"):
        asyncio.run(whole(give(0)))


@pytest.mark.parametrize("fails", [False, True])
def test_a_cancellation_takes_effect_after_it_however_often_it_comes(fails: bool) -> None:
    async def run() -> None:
        begun, go, done = asyncio.Event(), asyncio.Event(), []

        async def work() -> None:
            begun.set()
            await go.wait()
            done.append(1)
            if fails:
                raise ValueError("nobody hears of it")

        task = asyncio.create_task(whole(work()))
        await begun.wait()
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
            assert not task.done()
        go.set()
        await asyncio.wait({task})
        assert task.cancelled() and done == [1]

    asyncio.run(run())


def test_work_that_is_cancelled_itself_is_so_for_who_waits() -> None:
    async def work() -> None:
        raise asyncio.CancelledError

    async def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            await whole(work())

    asyncio.run(run())
