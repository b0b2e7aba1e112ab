"""A machine that waits for disk space: when it goes on, how often it tries, and what may happen to it meanwhile."""
from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.runtime.ports import News

from cloison.errors import MachineError
from cloison.hypervisor.base import MachineSpec, MachineState
from cloison.hypervisor.fake import FakeMachine
from cloison.warden import space
from cloison.warden.space import LAST, SpaceWait
from cloison.wire.warden import RESUME, DiskSource, Kernel, Launch, Layer

LIMIT = 30.0


class Place(News):
    """A machine whose files lie in two folders."""

    def __init__(self) -> None:
        super().__init__()
        self.free = {"/pool": 0, "/other": 5 * RESUME}
        self.changes: list[str] = []
        self.now = 0.0
        self.looks = 0
        self.machine = FakeMachine(MachineSpec("", 32, 1, "tcg", ()))
        self.wait = SpaceWait(self.machine, list(self.free), self._changed, free=self._free, clock=lambda: self.now)
        self.running: asyncio.Task[str] | None = None

    def _free(self, folder: str) -> int:
        self.looks += 1
        if self.free[folder] < 0:
            raise OSError("it can't be asked")
        return self.free[folder]

    def _changed(self, where: str) -> None:
        self.changes.append(where)
        self.tell()

    async def changed(self, times: int) -> None:
        await self.until(lambda: len(self.changes) >= times)

    async def looked(self, times: int) -> None:
        wanted = self.looks + 2 * times
        await come(lambda: self.looks >= wanted)


async def come(condition: Callable[[], bool]) -> None:
    """Until threads and tasks have brought it about."""
    while True:
        if condition():
            return
        await asyncio.sleep(0)


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Place], Awaitable[None]]], None]:
    monkeypatch.setattr(space, "FIRST", 0.0)

    def go(work: Callable[[Place], Awaitable[None]]) -> None:
        async def run() -> None:
            async with asyncio.timeout(LIMIT):
                place = Place()
                with await place.machine.start():
                    place.running = asyncio.ensure_future(place.wait.run())
                    await work(place)
                    place.running.cancel()
                    await asyncio.gather(place.running, return_exceptions=True)
                    place.machine.kill()

        asyncio.run(run())

    return go


Play = Callable[[Callable[[Place], Awaitable[None]]], None]


def test_it_goes_on_by_itself_when_there_is_enough(play: Play) -> None:
    async def work(place: Place) -> None:
        place.machine.write()
        await place.changed(1)
        assert place.changes == ["/pool"] and place.wait.where == "/pool"
        place.free["/pool"] = RESUME - 1
        await place.looked(3)
        assert place.machine.state is MachineState.PAUSED, "a little is not enough"
        place.machine.full = False
        place.free["/pool"] = RESUME
        await place.changed(2)
        assert place.changes == ["/pool", ""] and place.wait.where == ""
        assert place.machine.state is MachineState.RUNNING

    play(work)


def test_a_second_time_is_told_as_the_first(play: Play) -> None:
    async def work(place: Place) -> None:
        for _ in range(2):
            place.free["/pool"] = 0
            place.machine.write()
            await place.until(lambda: place.wait.where == "/pool")
            place.machine.full, place.free["/pool"] = False, RESUME
            await place.until(lambda: place.changes[-1] == "")
        assert place.changes == ["/pool", "", "/pool", ""]

    play(work)


def test_the_folder_with_least_is_named_and_all_must_have_enough(play: Play) -> None:
    async def work(place: Place) -> None:
        place.free = {"/pool": 2, "/other": 1}
        place.machine.write()
        await place.changed(1)
        assert place.changes == ["/other"]
        place.free["/other"] = RESUME
        await place.looked(2)
        assert place.wait.where == "/pool" and place.machine.state is MachineState.PAUSED

    play(work)


def test_a_folder_that_can_not_be_asked_has_nothing(play: Play) -> None:
    async def work(place: Place) -> None:
        place.free["/pool"] = -1
        place.machine.write()
        await place.looked(3)
        assert place.changes == ["/pool"] and place.machine.state is MachineState.PAUSED

    play(work)


@pytest.mark.parametrize("enough", [True, False])
def test_told_to_go_on_it_tries_or_says_why_not(play: Play, monkeypatch: pytest.MonkeyPatch, enough: bool) -> None:
    monkeypatch.setattr(space, "FIRST", LIMIT)

    async def work(place: Place) -> None:
        place.machine.write()
        await place.changed(1)
        place.machine.full = not enough
        place.free["/pool"] = RESUME if enough else 0
        if enough:
            await place.wait.retry()
            assert place.changes == ["/pool", ""] and place.machine.state is MachineState.RUNNING
            place.machine.write()
            place.free["/pool"] = 0
            await place.changed(3)               # it had not slept on
        else:
            with pytest.raises(MachineError, match="/pool is full; it goes on by itself when 64 MB are free there"):
                await place.wait.retry()
            assert place.changes == ["/pool"] and place.machine.state is MachineState.PAUSED

    play(work)


def test_held_it_stays_stopped_though_there_is_space(play: Play) -> None:
    async def work(place: Place) -> None:
        place.machine.write()
        await place.changed(1)
        place.wait.hold()
        place.free["/pool"], place.machine.full = RESUME, False
        for _ in range(20):
            await asyncio.to_thread(lambda: None)
        assert place.changes == ["/pool"] and place.machine.state is MachineState.PAUSED
        await place.machine.resume()
        place.machine.write()
        await place.changed(2)
        assert place.changes == ["/pool", "/pool"]

    play(work)


def test_who_finds_no_space_again_and_again_tries_ever_more_seldom(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quota, for example: the file system has space, and the file has not."""
    waits: list[float] = []

    async def wait_for(waiter: Awaitable[object], seconds: float) -> None:
        waits.append(seconds)
        waiter.close()  # type: ignore[attr-defined]  # a coroutine
        await asyncio.sleep(0)

    monkeypatch.setattr(space, "FIRST", 1.0)
    monkeypatch.setattr(asyncio, "wait_for", wait_for)

    async def work(place: Place) -> None:
        place.free["/pool"] = RESUME
        place.machine.write()
        await come(lambda: len(waits) >= 8)
        place.machine.full = False
        assert waits[:8] == [1, 2, 4, 8, 16, LAST, LAST, LAST]
        await come(lambda: place.machine.state is MachineState.RUNNING and not place.wait.where)
        place.now += 2 * space.CALM
        waits.clear()
        place.machine.write()
        await come(lambda: bool(waits))
        assert waits[0] == 1, "after a quiet time it begins anew"

    play(work)


def test_another_reason_ends_the_wait_and_is_told(play: Play) -> None:
    async def work(place: Place) -> None:
        place.machine.write("internal-error")
        assert place.running is not None and await place.running == "internal-error"
        assert place.changes == []

    play(work)


def test_the_folders_are_those_that_its_disks_grow_in() -> None:
    kernel = Kernel("6.1", "/k", "/i", "/m")
    base = (Layer("/pool/a/base.qcow2", "qcow2"),)
    kept = DiskSource("private", 512, base, Layer("/pool/a/private.2.qcow2", "qcow2"))
    overlay, fixed = DiskSource("root", 512, base), DiskSource("modules", 512, base, writable=False)
    for disks, wanted in (
        ((overlay, kept, fixed), ["/pool/a", "/data/tmp"]), ((kept, kept), ["/pool/a"]), ((overlay,), ["/data/tmp"]),
        ((fixed,), []),
    ):
        assert space.folders(Launch("work", "u", 1, 32, 1, disks, kernel), "/data/tmp") == wanted


def test_the_next_wait_is_one_too_when_the_last_was_cut_short(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(space, "FIRST", 3600.0)
    monkeypatch.setattr(space, "LAST", 3600.0)

    async def work(place: Place) -> None:
        place.machine.write()
        await place.changed(1)
        place.free["/pool"], place.machine.full = RESUME, False
        await place.wait.retry()
        assert place.machine.state is MachineState.RUNNING and place.changes == ["/pool", ""]
        place.free["/pool"] = 0
        place.machine.write()
        await place.changed(3)
        looks = place.looks
        for _ in range(20):
            await asyncio.to_thread(lambda: None)
        assert place.looks == looks and place.changes == ["/pool", "", "/pool"]

    play(work)
