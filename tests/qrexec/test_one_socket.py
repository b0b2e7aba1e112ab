"""Programs that say by a signal that they use their stdin both ways: who is told, in which loop, and who no longer."""
from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from tests.runtime.ports import News

from cloison.qrexec import one_socket


class Program(News):
    def __init__(self) -> None:
        super().__init__()
        self.told = 0

    def may_use_one_socket(self) -> None:
        self.told += 1
        self.tell()


@pytest.fixture(autouse=True)
def as_at_the_start() -> Iterator[None]:
    former = signal.signal(signal.SIGUSR1, signal.SIG_DFL)
    for each in (one_socket._programs, one_socket._signalled, one_socket._hearing):
        each.clear()
    yield
    for each in (one_socket._programs, one_socket._signalled, one_socket._hearing):
        each.clear()
    signal.signal(signal.SIGUSR1, former)


def test_all_that_run_are_told_and_those_that_have_ended_are_not() -> None:
    async def work() -> None:
        first, second = Program(), Program()
        one_socket.begin(first)
        one_socket.begin(second)
        assert not one_socket.signalled()
        os.kill(os.getpid(), signal.SIGUSR1)
        assert one_socket.signalled()                    # in this very turn
        await first.until(lambda: first.told == 1)
        assert second.told == 1
        one_socket.end(first)
        one_socket.end(first)
        os.kill(os.getpid(), signal.SIGUSR1)
        await second.until(lambda: second.told == 2)
        assert first.told == 1

    asyncio.run(work())


def test_programs_of_a_loop_that_has_ended_are_told_nothing() -> None:
    async def begin() -> Program:
        program = Program()
        one_socket.begin(program)
        return program

    async def work() -> None:
        program = await begin()
        os.kill(os.getpid(), signal.SIGUSR1)
        await program.until(lambda: program.told == 1)

    former = asyncio.run(begin())
    asyncio.run(work())
    assert former.told == 0


def test_without_a_loop_a_signal_is_taken_and_ends_nobody() -> None:
    one_socket.hear()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert one_socket.signalled()


def test_a_handler_of_somebody_elses_stays_where_there_is_no_loop() -> None:
    heard: list[int] = []
    signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    one_socket.hear()
    os.kill(os.getpid(), signal.SIGUSR1)
    assert heard == [signal.SIGUSR1] and not one_socket.signalled()
