"""Tasks of one owner: which are under way, and how they end."""
from __future__ import annotations

import asyncio
from typing import Any

from tests.patience import PATIENCE

from cloison.runtime.tasks import Tasks


def test_a_task_is_there_until_it_has_ended() -> None:
    async def run() -> None:
        tasks, go = Tasks(), asyncio.Event()

        async def work() -> None:
            await go.wait()

        first, second = tasks.begin(work()), tasks.begin(work())
        assert tasks == {first, second}
        first.cancel()
        await asyncio.wait({first})
        assert tasks == {second}
        go.set()
        await tasks.settled()
        assert not tasks and second.done() and not second.cancelled()

    asyncio.run(run())


def test_settled_waits_for_those_that_begin_meanwhile() -> None:
    async def run() -> None:
        tasks, done = Tasks(), list[int]()

        async def work(more: int) -> None:
            await asyncio.sleep(0)
            if more:
                tasks.begin(work(more - 1))
            done.append(more)

        tasks.begin(work(3))
        await tasks.settled()
        assert sorted(done) == [0, 1, 2, 3]

    asyncio.run(run())


def test_end_waits_until_what_was_cancelled_has_cleaned_up() -> None:
    async def run() -> None:
        tasks, cleaned = Tasks(), list[int]()

        async def work(number: int) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                await asyncio.sleep(0)
                cleaned.append(number)

        for number in range(3):
            tasks.begin(work(number))
        await asyncio.sleep(0)
        await asyncio.wait_for(tasks.end(), PATIENCE)
        assert sorted(cleaned) == [0, 1, 2] and not tasks
        await tasks.end()

    asyncio.run(run())


def test_cancel_waits_for_none() -> None:
    async def run() -> None:
        tasks = Tasks()
        task = tasks.begin(asyncio.Event().wait())          # type: ignore[arg-type]  # what it returns is nobody's
        tasks.cancel()
        assert task in tasks
        await asyncio.wait_for(tasks.settled(), PATIENCE)
        assert task.cancelled()

    asyncio.run(run())


def test_a_failure_that_nobody_takes_is_told_of() -> None:
    async def fails() -> None:
        raise ValueError("unforeseen")

    async def run() -> None:
        told: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
        tasks = Tasks()
        tasks.begin(fails())
        await tasks.settled()
        await asyncio.sleep(0)
        assert [str(context["exception"]) for context in told] == ["unforeseen"]

    asyncio.run(run())
