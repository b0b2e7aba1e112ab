"""How many programs of the host a qube's calls have at once: of one service, of all; who waits for a place, and for how long."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.runtime.ports import PATIENCE

from cloison.qrexec.host.policy_client import Denied
from cloison.qrexec.host.programs import MAX_WAITING, MOST, MOST_EACH, Programs


def run(work: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(30):
            await work

    asyncio.run(limited())


def test_as_many_of_one_service_and_of_all_as_are_said_and_each_that_ends_makes_room() -> None:
    async def work() -> None:
        programs = Programs(3, 2, patience=0.0)
        first = await programs.place("a")
        await programs.place("a")
        with pytest.raises(Denied, match="2 programs of a run on the host for this qube, the most by call-programs-each-max"):
            await programs.place("a")
        last = await programs.place("b")
        with pytest.raises(Denied, match="3 programs run on the host for this qube, the most by call-programs-max"):
            await programs.place("c")
        last()
        last()                                   # twice counts once
        await programs.place("c")
        with pytest.raises(Denied):
            await programs.place("c")
        first()
        await programs.place("a")

    run(work())


def test_the_defaults_are_few() -> None:
    async def work() -> None:
        programs = Programs(patience=0.0)
        for number in range(MOST):
            await programs.place(str(number // MOST_EACH))
        with pytest.raises(Denied):
            await programs.place("another")

    run(work())


@pytest.mark.parametrize(("most", "each"), [(0, 4), (4, 0)])
def test_none_is_none_and_nobody_waits_for_it(most: int, each: int) -> None:
    async def work() -> None:
        with pytest.raises(Denied, match="may have no programs"):
            await Programs(most, each, patience=PATIENCE).place("a")

    run(work())


async def in_line(*waiting: asyncio.Task[Callable[[], None]]) -> None:
    """Every task has had its turn, and stands in line."""
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)


def test_who_waits_gets_a_place_in_turn_and_passes_who_can_have_none_yet() -> None:
    async def work() -> None:
        programs = Programs(2, 1, patience=PATIENCE)
        a, b = await programs.place("a"), await programs.place("b")
        second_a, third_a, c = [asyncio.ensure_future(programs.place(name)) for name in ("a", "a", "c")]
        await in_line(second_a, third_a, c)
        b()                                      # there is room, but not for another `a`
        release_c = await c
        await in_line(second_a, third_a)
        a()
        release = await second_a
        await in_line(third_a)
        release_c()
        await in_line(third_a)
        release()
        await third_a

    run(work())


def test_the_line_has_an_end_and_who_has_waited_long_enough_leaves_it() -> None:
    async def work() -> None:
        programs = Programs(1, 1, patience=PATIENCE)
        release = await programs.place("a")
        waiting = [asyncio.ensure_future(programs.place("a")) for _ in range(MAX_WAITING)]
        await in_line(*waiting)
        with pytest.raises(Denied, match=f"{MAX_WAITING} calls wait"):
            await programs.place("a")
        waiting[0].cancel()
        await asyncio.wait(waiting[:1])
        waiting.append(asyncio.ensure_future(programs.place("a")))       # there is room in the line again
        await in_line(*waiting[1:])
        release()
        (await waiting[1])()
        for task in waiting[2:]:
            (await task)()
        late = Programs(1, 1, patience=0.0)
        release = await late.place("a")
        with pytest.raises(Denied):
            await late.place("a")
        release()
        await late.place("a")                    # nobody who has left takes a place

    run(work())


def test_a_place_that_comes_to_a_call_that_is_cancelled_goes_to_the_next() -> None:
    async def work() -> None:
        programs = Programs(1, 1, patience=PATIENCE)
        release = await programs.place("a")
        first, second = asyncio.ensure_future(programs.place("a")), asyncio.ensure_future(programs.place("a"))
        await in_line(first, second)
        release()
        first.cancel()
        await asyncio.wait([first])
        assert first.cancelled()
        await second

    run(work())
