"""Many watches on one epoll: each tells once, a half-close is no hang-up, an ended watch is silent."""
from __future__ import annotations

import asyncio
import os
import socket
from functools import partial

from tests.patience import PATIENCE

from cloison.runtime.hangups import Hangups

COUNT = 600             # more than one look at the epoll takes


def test_those_that_hang_up_are_told_of_and_no_other() -> None:
    async def run() -> None:
        hangups = Hangups()
        pairs = [socket.socketpair() for _ in range(COUNT)]
        gone: list[int] = []
        news = asyncio.Event()

        def told(number: int) -> None:
            gone.append(number)
            news.set()

        for number, (ours, theirs) in enumerate(pairs):
            theirs.shutdown(socket.SHUT_WR)
            hangups.watch(ours.fileno(), partial(told, number))
        hangups.end(pairs[0][0].fileno())
        hangups.end(pairs[0][0].fileno())
        for _, theirs in pairs[:COUNT - 1]:
            theirs.close()
        async with asyncio.timeout(PATIENCE):
            while len(gone) < COUNT - 2:
                news.clear()
                await news.wait()
        assert sorted(gone) == list(range(1, COUNT - 1))
        assert len(hangups) == 1
        hangups.close()
        for pair in pairs:
            for end in pair:
                end.close()

    asyncio.run(run())


def test_its_end_leaves_nothing_open_and_nobody_is_told_any_more() -> None:
    async def run() -> None:
        before = len(os.listdir("/proc/self/fd"))
        hangups = Hangups()
        ours, theirs = socket.socketpair()
        told: list[int] = []
        hangups.watch(ours.fileno(), lambda: told.append(1))
        assert len(hangups) == 1
        theirs.close()
        hangups.close()
        await asyncio.to_thread(len, "")
        ours.close()
        assert told == [] and len(hangups) == 0 and len(os.listdir("/proc/self/fd")) == before

    asyncio.run(run())


def test_who_is_told_may_end_the_watch_of_another_that_has_hung_up_too() -> None:
    async def run() -> None:
        failures: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
        hangups, told = Hangups(), list[int]()
        pairs = [socket.socketpair() for _ in range(4)]

        def tell(number: int) -> None:
            told.append(number)
            for other, _ in pairs[:3]:
                hangups.end(other.fileno())

        for number, (ours, theirs) in enumerate(pairs):
            hangups.watch(ours.fileno(), partial(tell, number))
            theirs.close()
        async with asyncio.timeout(PATIENCE):
            while 3 not in told:
                await asyncio.to_thread(len, "")
        assert len(hangups) == 0 and len(set(told) - {3}) <= 1 and len(told) == len(set(told)) and not failures
        hangups.close()
        for ours, _ in pairs:
            ours.close()

    asyncio.run(run())
