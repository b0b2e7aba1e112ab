"""A warden's QubesDB: what it tells of the guest's changes, and how often."""
from __future__ import annotations

import asyncio
import dataclasses
import socket
from collections.abc import Awaitable, Callable

import pytest
from tests.runtime.ports import News, Recorder, Side

from cloison.errors import MachineError
from cloison.warden import qubesdb
from cloison.warden.qubesdb import WATCHED, QubesDb
from cloison.wire import qdb
from cloison.wire.mux import GUEST, HOST
from cloison.wire.warden import Kernel, Launch

BLOCK, USB = WATCHED
LAUNCH = Launch("work", "00000000-0000-4000-8000-000000000001", 7, 400, 2, (), Kernel("6.1", "/k", "/i", "/m"))


class Told(News):
    def __init__(self) -> None:
        super().__init__()
        self.paths: list[object] = []
        self.violations: list[str] = []

    def event(self, message: dict[str, object]) -> None:
        assert message["event"] == "qdb-change"
        self.paths.append(message["path"])
        self.tell()


def scene(work: Callable[[QubesDb, Recorder, Told], Awaitable[None]]) -> None:
    """The guest's end is a recorder: it says what it likes."""
    async def run() -> None:
        ours, theirs = socket.socketpair()
        host, guest, told = Side(ours, HOST), Side(theirs, GUEST), Told()
        ends: list[Recorder] = []

        def accept(channel: int, _address: object) -> Recorder:
            ends.append(Recorder(guest.port, channel))
            guest.tell()
            return ends[-1]

        guest.accept = accept
        database = QubesDb(host.port, dataclasses.replace(LAUNCH, identity={"/name": "work"}), told.event, told.violations.append)
        await guest.until(lambda: bool(ends))
        try:
            await work(database, ends[0], told)
            assert told.violations == []
        finally:
            database.close()
            for side in (host, guest):
                side.port.end("the test is over")
                side.stream.close()

    asyncio.run(run())


def changes(path: str, count: int) -> bytes:
    return qdb.encode(qdb.WRITE, path, b"1") * count


def test_lesson_19_a_guest_that_writes_without_end_is_told_of_now_and_then() -> None:
    async def work(database: QubesDb, guest: Recorder, told: Told) -> None:
        guest.send(changes(BLOCK, 1000) + changes(USB, 1))
        await told.until(lambda: USB in told.paths)
        await told.until(lambda: told.paths.count(BLOCK) > 1)       # that it has changed since is told, too
        assert told.paths[0] == BLOCK and len(told.paths) < 500 and told.paths.count(USB) == 1

    scene(work)


def test_what_is_not_watched_is_not_told() -> None:
    async def work(database: QubesDb, guest: Recorder, told: Told) -> None:
        guest.send(changes("/own", 1) + changes(BLOCK + "/sda", 1) + changes(USB, 1))
        await told.until(lambda: bool(told.paths))
        assert told.paths == [USB]
        assert database.read("/own") == {"/own": "1"}

    scene(work)


def test_orders_of_qubesd() -> None:
    async def work(database: QubesDb, guest: Recorder, told: Told) -> None:
        database.write({"/new": "1", "/name": None})
        assert database.read("/") == {"/new": "1"}
        senseless: tuple[object, ...] = (None, [], {"no slash": "x"}, {"/x": "y" * 5000})
        for entries in senseless:
            with pytest.raises(MachineError):
                database.write(entries)
        database.write({f"/big/{number}": "x" * 3000 for number in range(200)})
        with pytest.raises(MachineError, match="too much"):
            database.read("/big/")

    scene(work)


def test_after_the_end_nothing_is_told() -> None:
    async def work(database: QubesDb, guest: Recorder, told: Told) -> None:
        guest.send(changes(BLOCK, 2) + changes(USB, 2))
        await told.until(lambda: USB in told.paths)
        database.close()
        database.close()
        assert len(database._quiet) == 2 and all(timer.cancelled() for timer in database._quiet.values())

    scene(work)


def test_a_new_agent_finds_what_the_former_one_had_and_is_watched_like_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it may write again is told of again: the quiet of each path is over by then."""
    monkeypatch.setattr(qubesdb, "QUIET", 0.0)

    async def work(database: QubesDb, guest: Recorder, told: Told) -> None:
        guest.send(changes("/own", 1) + changes(BLOCK, 1))
        await told.until(lambda: told.paths == [BLOCK])
        ours, theirs = socket.socketpair()
        host, other, ends = Side(ours, HOST), Side(theirs, GUEST), list[Recorder]()

        def accept(channel: int, _address: object) -> Recorder:
            ends.append(Recorder(other.port, channel))
            other.tell()
            return ends[-1]

        other.accept = accept
        database.reconnect(host.port)
        await other.until(lambda: bool(ends))
        ends[0].send(changes(USB, 1) + changes(BLOCK, 1))
        await told.until(lambda: len(told.paths) == 3)
        assert told.paths == [BLOCK, USB, BLOCK]
        assert database.read("/") == {"/name": "work", "/own": "1", BLOCK: "1", USB: "1"}
        for side in (host, other):
            side.port.end("the test is over")
            side.stream.close()

    scene(work)
