"""Finding the other end: how long each waits for it, who is told, and what stays open or in the folder meanwhile."""
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE

from cloison.runtime import vchan_dialer
from cloison.runtime.vchan_dialer import Dialer, file_name
from cloison.wire.mux import Address

ADDRESS, OTHER = Address(0, 7, 513), Address(0, 7, 514)


class Told:
    """What became of a dial or a listener: `connected` or `failed`, in order."""

    def __init__(self) -> None:
        self.words: asyncio.Queue[str] = asyncio.Queue()

    def connected(self, stream: socket.socket) -> None:
        assert not stream.getblocking()
        stream.close()
        self.words.put_nowait("connected")

    def failed(self) -> None:
        self.words.put_nowait("failed")

    async def next(self) -> str:
        return await asyncio.wait_for(self.words.get(), PATIENCE)


def fds() -> int:
    return len(os.listdir("/proc/self/fd"))


async def turns() -> None:
    """What is due is done."""
    for _ in range(5):
        await asyncio.to_thread(len, "")


def with_dialer(folder: Path, work: Callable[[Dialer], Awaitable[None]]) -> None:
    async def run() -> None:
        before = fds()
        dialer = Dialer(str(folder))
        await work(dialer)
        dialer.close()
        dialer.close()
        assert fds() == before

    asyncio.run(run())
    assert os.listdir(folder) == []


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vchan_dialer, "PATIENCE", 0.01)


@pytest.mark.usefixtures("hasty")
def test_a_server_that_never_comes_is_told_of_once_and_is_no_longer_looked_out_for(tmp_path: Path) -> None:
    async def work(dialer: Dialer) -> None:
        before, told = fds(), Told()
        dialer.dial(ADDRESS, told.connected, told.failed)
        assert await told.next() == "failed"
        assert fds() == before and not dialer._waiting
        late = Told()
        dialer.listen(ADDRESS, late.connected)
        await turns()
        assert told.words.empty() and late.words.empty()

    with_dialer(tmp_path, work)


@pytest.mark.usefixtures("hasty")
@pytest.mark.parametrize("reached", [True, False])
def test_a_client_that_never_comes_is_told_of_and_one_that_came_is_not(tmp_path: Path, reached: bool) -> None:
    async def work(dialer: Dialer) -> None:
        served, told = Told(), Told()
        dialer.listen(ADDRESS, served.connected, served.failed)
        if reached:
            dialer.dial(ADDRESS, told.connected, told.failed)
            assert (await served.next(), await told.next()) == ("connected", "connected")
            await asyncio.sleep(0.02)
        else:
            assert await served.next() == "failed"
        await turns()
        assert served.words.empty() and told.words.empty() and os.listdir(tmp_path) == []

    with_dialer(tmp_path, work)


@pytest.mark.usefixtures("hasty")
def test_a_listener_that_was_replaced_has_no_end_of_its_own(tmp_path: Path) -> None:
    async def work(dialer: Dialer) -> None:
        former, present = Told(), Told()
        dialer.listen(ADDRESS, former.connected, former.failed)
        dialer.listen(ADDRESS, present.connected)
        await asyncio.sleep(0.02)
        assert former.words.empty() and present.words.empty() and os.listdir(tmp_path) == [file_name(ADDRESS)]

    with_dialer(tmp_path, work)


def test_who_gives_up_is_told_nothing_and_the_last_one_ends_the_watch(tmp_path: Path) -> None:
    async def work(dialer: Dialer) -> None:
        before, one, two = fds(), Told(), Told()
        give_up = [dialer.dial(address, told.connected, told.failed) for address, told in ((ADDRESS, one), (OTHER, two))]
        await turns()
        assert fds() == before + 1, "one watch for all"
        give_up[0]()
        give_up[0]()
        assert fds() == before + 1
        dialer.listen(OTHER, one.connected)
        assert {await two.next(), await one.next()} == {"connected"}
        assert fds() == before, "nobody waits any more"
        give_up[1]()
        await turns()
        assert one.words.empty() and two.words.empty()

    with_dialer(tmp_path, work)


def test_what_can_not_be_connected_to_is_told_at_once(tmp_path: Path) -> None:
    async def work(dialer: Dialer) -> None:
        told = Told()
        (tmp_path / file_name(ADDRESS)).symlink_to(file_name(ADDRESS))
        dialer.dial(ADDRESS, told.connected, told.failed)
        assert await told.next() == "failed"
        (tmp_path / file_name(ADDRESS)).unlink()

    with_dialer(tmp_path, work)


def test_after_the_end_nobody_is_told(tmp_path: Path) -> None:
    async def work(dialer: Dialer) -> None:
        told = Told()
        dialer.dial(ADDRESS, told.connected, told.failed)
        dialer.listen(OTHER, told.connected, told.failed)
        await turns()
        dialer.close()
        await turns()
        assert told.words.empty()

    with_dialer(tmp_path, work)


@pytest.mark.parametrize("how", ["connected", "given up", "refused for good"])
def test_a_wait_that_is_over_leaves_no_timer(tmp_path: Path, how: str) -> None:
    async def work(dialer: Dialer) -> None:
        loop: Any = asyncio.get_running_loop()
        told = Told()
        if how == "connected":
            dialer.listen(ADDRESS, lambda stream: stream.close())
        elif how == "refused for good":
            (tmp_path / file_name(ADDRESS)).symlink_to(file_name(ADDRESS))
        give_up = dialer.dial(ADDRESS, told.connected, told.failed)
        if how == "given up":
            give_up()
        else:
            assert await told.next() == ("connected" if how == "connected" else "failed")
        await turns()
        give_up()
        assert not [timer for timer in loop._scheduled if not timer.cancelled()] and told.words.empty()
        if how == "refused for good":
            (tmp_path / file_name(ADDRESS)).unlink()

    with_dialer(tmp_path, work)
