"""The console as a terminal: both ways, history first, no echo, bounded while nobody reads."""
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.runtime.ports import at_rest

from cloison.errors import MachineError
from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.fake import FakeMachine
from cloison.warden.console import KEPT, Console


def on_console(scenario: Callable[[FakeMachine, Console], Awaitable[None]]) -> None:
    async def run() -> None:
        machine = FakeMachine(MachineSpec("u", 64, 1, "tcg", ()))
        stream = await machine.start()
        console = Console(machine)
        async with asyncio.timeout(PATIENCE):
            await scenario(machine, console)
        console.close()
        console.close()
        machine.kill()
        stream.close()

    asyncio.run(run())


async def read(path: str, size: int) -> bytes:
    """So many bytes of the terminal, as a program that opens it gets them."""
    fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
    try:
        data = b""
        while len(data) < size:
            data += await asyncio.to_thread(os.read, fd, size - len(data))
        return data
    finally:
        os.close(fd)


def test_history_comes_first_and_nothing_is_echoed() -> None:
    async def scenario(machine: FakeMachine, console: Console) -> None:
        machine.print(b"booting\r\n")
        path = await console.open()
        machine.print(b"login: ")
        assert await read(path, 16) == b"booting\r\nlogin: "
        serial = machine.serial
        assert serial is not None
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        os.write(fd, b"root\n\x03")
        serial.setblocking(False)
        assert await asyncio.get_running_loop().sock_recv(serial, 100) == b"root\n\x03"
        os.close(fd)

    on_console(scenario)


def test_it_is_one_terminal_however_often_it_is_asked_for() -> None:
    async def scenario(_: FakeMachine, console: Console) -> None:
        paths = await asyncio.gather(*(console.open() for _number in range(5)))
        assert len(set(paths)) == 1
        assert Path(paths[0]).is_char_device()

    on_console(scenario)


def test_while_nobody_reads_only_the_latest_is_kept() -> None:
    async def scenario(machine: FakeMachine, console: Console) -> None:
        path = await console.open()
        serial = machine.serial
        assert isinstance(serial, socket.socket)
        serial.setblocking(False)
        loop = asyncio.get_running_loop()
        for number in range(40):
            await loop.sock_sendall(serial, b"%08d" % number * 1024)
            assert len(console._waiting) <= KEPT
        await loop.sock_sendall(serial, b"last")
        seen = b""
        fd = os.open(path, os.O_RDWR | os.O_NOCTTY)
        while not seen.endswith(b"last"):
            seen += await asyncio.to_thread(os.read, fd, KEPT)
        os.close(fd)
        assert len(seen) < 40 * 8192, "what was too old is gone"

    on_console(scenario)


def test_the_end_of_the_machine_is_no_error() -> None:
    async def scenario(machine: FakeMachine, console: Console) -> None:
        await console.open()
        ends = asyncio.get_running_loop().create_task(machine.wait())
        machine.end()
        await ends
        console.close()

    on_console(scenario)


def test_a_console_that_can_not_be_had_leaves_nothing_open_and_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(machine: FakeMachine, console: Console) -> None:
        async def refuse(_stream: socket.socket) -> None:
            raise MachineError("no console")

        with monkeypatch.context() as broken:
            broken.setattr(machine, "attach_console", refuse)
            before = len(os.listdir("/proc/self/fd"))
            with pytest.raises(MachineError, match="no console") as caught:
                await console.open()
            assert len(os.listdir("/proc/self/fd")) == before, f"{caught.value} left something open"
        assert Path(await console.open()).is_char_device()

    on_console(scenario)


async def came(condition: Callable[[], bool]) -> None:
    """In a turn or two of the loop."""
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it never comes")


def test_a_terminal_at_which_nothing_happens_costs_nothing() -> None:
    """Before and after there was something to show, with nobody who reads, and when the machine has gone."""
    async def scenario(machine: FakeMachine, console: Console) -> None:
        path = await console.open()
        await at_rest()
        machine.print(b"shown")
        await came(lambda: not console._waiting)
        await at_rest()
        assert await read(path, 5) == b"shown"
        serial = machine.serial
        assert serial is not None
        for _ in range(20):
            serial.setblocking(False)
            await asyncio.get_running_loop().sock_sendall(serial, b"x" * 4096)
        await came(lambda: len(console._waiting) > 4096)
        await at_rest()
        machine.end()
        await at_rest()

    on_console(scenario)


def test_what_a_guest_does_not_take_is_lost_and_keeps_nobody_waiting() -> None:
    """A serial line has no back-pressure."""
    async def scenario(machine: FakeMachine, console: Console) -> None:
        fd = os.open(await console.open(), os.O_RDWR | os.O_NOCTTY)
        serial = machine.serial
        assert serial is not None
        serial.setblocking(False)
        for number in range(600):
            await asyncio.to_thread(os.write, fd, b"%04d" % number * 1024)
        os.close(fd)
        await at_rest()
        taken = b""
        while True:
            try:
                taken += serial.recv(1 << 20)
            except BlockingIOError:
                break
        assert 0 < len(taken) < 600 * 4096 and taken.startswith(b"0000")
        machine.print(b"still there")
        assert await read(os.ttyname(console._slave), 11) == b"still there"

    on_console(scenario)
