"""QEMU's monitor against a QEMU that says whatever a guest makes it say: nothing is kept that nobody waits for."""
from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import tracemalloc
from collections.abc import Awaitable, Callable

import pytest
from qemu.qmp import QMPError

from cloison.hypervisor.qemu.monitor import BURST, MAX_EVENTS, MAX_LINE, RATE, Monitor

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}


class Qemu:
    """The other end: it greets, and answers what `answer` says."""

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self._stream, self._loop = stream, asyncio.get_running_loop()

    async def say(self, *messages: object) -> None:
        await self.send(b"".join(json.dumps(message).encode() + b"\r\n" for message in messages))

    async def send(self, data: bytes) -> None:
        await self._loop.sock_sendall(self._stream, data)

    async def heard(self) -> dict[str, object]:
        text = b""
        while True:                      # a command has no line's end
            got = await self._loop.sock_recv(self._stream, 4096)
            assert got, "the monitor has hung up"
            text += got
            with contextlib.suppress(ValueError):
                message: dict[str, object] = json.loads(text)
                return message

    async def answers_one(self) -> None:
        await self.say({"return": {}, "id": (await self.heard())["id"]})


def event(name: str, **data: object) -> dict[str, object]:
    return {"timestamp": {"seconds": 1, "microseconds": 2}, "event": name, "data": data}


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def played(play: Callable[[Monitor, Qemu], Awaitable[None]], *, ends: list[int] | None = None, clock: Clock | None = None) -> int:
    """How often the monitor has said that it is flooded; `ends` is added to when it says that the other end has hung up."""
    floods = []
    ended = ends if ends is not None else []

    async def main() -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            monitor = Monitor(on_flood=lambda: floods.append(1), on_end=lambda: ended.append(1), clock=clock or Clock())
            qemu = Qemu(theirs)
            async with asyncio.timeout(30):
                connecting = asyncio.create_task(monitor.connect(ours))
                await qemu.say(GREETING)
                await qemu.say({"return": {}, **({"id": asked["id"]} if "id" in (asked := await qemu.heard()) else {})})
                await connecting
                try:
                    await play(monitor, qemu)
                finally:
                    with contextlib.suppress(QMPError, EOFError, OSError):
                        await monitor.disconnect()

    asyncio.run(main())
    return len(floods)


async def asks(monitor: Monitor, qemu: Qemu) -> None:
    """It is there, and what was sent before has been read."""
    asking = asyncio.create_task(monitor.execute("query-status"))
    await qemu.answers_one()
    await asking


@pytest.mark.parametrize("name", ["STOP", "ACPI_DEVICE_OST", "MIGRATION", "ANY_OTHER"])
def test_events_come_as_fast_as_the_bound_says_and_faster_is_a_flood(name: str) -> None:
    """Whether they are listened to, thrown away unread or parsed: each costs the reader's time."""
    clock = Clock()
    line = json.dumps(event(name)).encode() + b"\r\n"

    async def play(monitor: Monitor, qemu: Qemu) -> None:
        for _ in range(BURST // 500 - 1):
            await qemu.send(line * 500)
        await asks(monitor, qemu)
        for _ in range(4):                         # as long as anybody likes
            clock.now += 400 / RATE
            await qemu.send(line * 399)
            await asks(monitor, qemu)
        asking = asyncio.create_task(monitor.execute("query-status"))
        await qemu.heard()
        with contextlib.suppress(OSError):
            await qemu.send(line * 600)
        with pytest.raises(QMPError):
            await asking

    ends: list[int] = []
    assert played(play, clock=clock, ends=ends) == 1
    assert ends == [], "a flood is told once, and as such"


def test_long_lines_are_fewer() -> None:
    """A tenth of the bound in lines, far beyond it in bytes."""
    line = json.dumps(event("ANY_OTHER", text="x" * (MAX_LINE // 2))).encode() + b"\r\n"

    async def play(monitor: Monitor, qemu: Qemu) -> None:
        asking = asyncio.create_task(monitor.execute("query-status"))
        await qemu.heard()
        with contextlib.suppress(OSError):
            for _ in range(BURST // 100):
                await qemu.send(line)
        with pytest.raises(QMPError):
            await asking

    assert played(play) == 1


@pytest.mark.parametrize("how", [socket.SHUT_WR, socket.SHUT_RDWR], ids=["says nothing more", "takes nothing more either"])
def test_one_that_hangs_up_is_told_of(how: int) -> None:
    async def play(monitor: Monitor, qemu: Qemu) -> None:
        asking = asyncio.create_task(monitor.execute("query-status"))
        await qemu.heard()
        qemu._stream.shutdown(how)
        with pytest.raises(QMPError):
            await asking

    ends: list[int] = []
    assert played(play, ends=ends) == 0
    assert ends == [1]


def test_to_let_go_waits_for_nobody() -> None:
    """The other end neither reads nor hangs up."""
    async def play(monitor: Monitor, qemu: Qemu) -> None:
        asking = asyncio.create_task(monitor.execute("x" * MAX_LINE * 4))
        for _ in range(5):
            await asyncio.sleep(0)
        monitor.abort()
        with pytest.raises(QMPError):
            await asking

    assert played(play) == 0


@pytest.mark.parametrize("name", ["ACPI_DEVICE_OST", "RTC_CHANGE", "DEVICE_UNPLUG_GUEST_ERROR", "ANY_OTHER"])
def test_events_that_nobody_waits_for_leave_nothing_behind(name: str) -> None:
    async def play(monitor: Monitor, qemu: Qemu) -> None:
        line = json.dumps(event(name, info={"device": "x", "source": 1, "status": 2, "slot": "0"})).encode() + b"\r\n"
        tracemalloc.start()
        try:
            with monitor.waiting_for("MIGRATION"):
                for _ in range(19):
                    await qemu.send(line * 500)
                asking = asyncio.create_task(monitor.execute("query-status"))
                await qemu.answers_one()
                await asking                       # all that came before has been read by now
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 4 * MAX_LINE + (1 << 20)

    assert played(play) == 0


def test_event_that_somebody_waits_for_comes_through_the_noise() -> None:
    async def play(monitor: Monitor, qemu: Qemu) -> None:
        with monitor.waiting_for("DEVICE_DELETED") as events:
            await qemu.say(*[event("ACPI_DEVICE_OST")] * 3, event("DEVICE_DELETED", device="a"), event("OTHER"),
                           event("DEVICE_DELETED", device="b"))
            assert [(await events.get())["data"] for _ in range(2)] == [{"device": "a"}, {"device": "b"}]
            assert events.history == (), "what was taken is not kept"

    assert played(play) == 0


def test_as_many_events_may_wait_as_the_bound_says_and_one_more_is_a_flood() -> None:
    async def play(monitor: Monitor, qemu: Qemu) -> None:
        with monitor.waiting_for("MIGRATION"):
            await qemu.say(*[event("MIGRATION", status="active")] * MAX_EVENTS)
            asking = asyncio.create_task(monitor.execute("query-status"))
            await qemu.answers_one()
            await asking
            asking = asyncio.create_task(monitor.execute("query-status"))
            await qemu.heard()
            await qemu.say(event("MIGRATION", status="active"))
            with pytest.raises(QMPError):
                await asking

    assert played(play) == 1


@pytest.mark.parametrize("line", [
    b'{"return": "' + b"x" * MAX_LINE + b'"}\r\n',
    b"no json\r\n", b'{"event": ["a", "list"]}\r\n', b"[" * 100_000 + b"\r\n", b"[]\r\n",
    b'{"return": {}, "id": ["a", "list"]}\r\n', b'{"error": {"class": "GenericError", "desc": "no id"}}\r\n',
], ids=["long", "garbage", "nameless", "deep", "list", "id", "error"])
def test_line_that_no_qemu_sends_ends_the_connection(line: bytes) -> None:
    async def play(monitor: Monitor, qemu: Qemu) -> None:
        with monitor.waiting_for("MIGRATION"):
            asking = asyncio.create_task(monitor.execute("query-status"))
            await qemu.heard()
            with contextlib.suppress(OSError):
                await qemu.send(line)
            with pytest.raises(QMPError):
                await asking

    assert played(play) == 1
