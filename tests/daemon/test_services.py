"""Services that qubesd asks of a qube: what a good, a failing, a talkative, a silent and a vanishing qube make of the call."""
from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.daemon.services import run_service
from cloison.errors import MachineError
from cloison.runtime.paths import Paths
from cloison.wire import qrexec

UUID = "00000000-0000-4000-8000-000000000001"
Guest = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture
def paths() -> Iterator[Paths]:
    """In a folder with a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
        made = Paths.from_environment({"CLOISON_ROOT": folder})
        made.ensure()
        yield made


class Warden:
    """A qube's qrexec socket: takes one request, notes its command, and lets `guest` have the data channel."""

    def __init__(self, guest: Guest) -> None:
        self.guest = guest
        self.commands: list[str] = []

    async def serve(self, server: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        client, _ = await loop.sock_accept(server)
        with client:
            client.setblocking(False)
            client.send(qrexec.hello(qrexec.SOCKET_VERSION))
            decoder = qrexec.Decoder(qrexec.FROM_CLIENT)
            fds: list[int] = []
            while not self.commands:
                await readable(client)
                data, found, _, _ = socket.recv_fds(client, 4096, 1)
                fds += found
                decoder.feed(data)
                while message := decoder.next_message():
                    if isinstance(message, qrexec.Exec):
                        self.commands.append(message.command)
            client.send(qrexec.allocated(qrexec.EXEC_CMDLINE, 7, 513))
            reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fds[0]))
            try:
                await self.guest(reader, writer)
            finally:
                writer.close()


async def readable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    loop.add_reader(sock, lambda: None if ready.done() else ready.set_result(None))
    try:
        await ready
    finally:
        loop.remove_reader(sock)


def call(paths: Paths, guest: Guest, *, time: float = PATIENCE) -> list[str]:
    """The commands that reached the qube. Raises what the call raises; no descriptor is left open."""
    warden = Warden(guest)

    async def go() -> None:
        with socket.socket(socket.AF_UNIX) as server:
            path = os.path.join(paths.qubes, f"qrexec.uuid:{UUID}")
            server.bind(path)
            server.listen()
            server.setblocking(False)
            serving = asyncio.create_task(warden.serve(server))
            try:
                await run_service(paths, UUID, "qubes.ResizeDisk", b"private\n", time=time)
            finally:
                serving.cancel()
                await asyncio.wait([serving])
                os.unlink(path)

    before = len(os.listdir("/proc/self/fd"))
    try:
        asyncio.run(go())
    finally:
        assert len(os.listdir("/proc/self/fd")) == before
    return warden.commands


async def hear(reader: asyncio.StreamReader) -> bytes:
    """The service's input to its end."""
    decoder, heard = qrexec.Decoder(qrexec.FROM_CALLER), b""
    while data := await reader.read(65536):
        decoder.feed(data)
        while message := decoder.next_message():
            if isinstance(message, qrexec.Data):
                if not message.payload:
                    return heard
                heard += message.payload
    return heard


def test_a_service_gets_its_input_as_root(paths: Paths) -> None:
    inputs: list[bytes] = []

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(qrexec.hello(qrexec.VERSION))
        inputs.append(await hear(reader))
        writer.write(b"".join(qrexec.data(qrexec.STDOUT, b"thrown away")) + qrexec.exit_code(0))

    assert call(paths, guest) == ["root:QUBESRPC qubes.ResizeDisk+ dom0"]
    assert inputs == [b"private\n"]


def test_lesson_13_what_a_failing_service_says_cannot_drive_a_terminal(paths: Paths) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(qrexec.hello(qrexec.VERSION))
        writer.write(b"".join(qrexec.data(qrexec.STDERR, b"\x1b[2Jno\nspace %s")) + qrexec.end_of_stream(qrexec.STDERR))
        writer.write(qrexec.exit_code(3))

    with pytest.raises(MachineError, match=r"^qubes.ResizeDisk failed in the qube: _\[2Jno space %s$"):
        call(paths, guest)


def test_a_silent_failure_has_a_status(paths: Paths) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(qrexec.hello(qrexec.VERSION) + qrexec.exit_code(127))

    with pytest.raises(MachineError, match="status 127"):
        call(paths, guest)


@pytest.mark.parametrize("last", [b"", b"\xff" * 64, qrexec.HEADER.pack(qrexec.STDERR, 0xFFFFFFFF)])
def test_a_qube_that_hangs_up_or_breaks_the_protocol_is_an_error(paths: Paths, last: bytes) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(qrexec.hello(qrexec.VERSION) + last)

    with pytest.raises(MachineError, match="failed in the qube"):
        call(paths, guest)


def test_a_qube_that_never_answers_costs_its_caller_the_time_and_nothing_else(paths: Paths) -> None:
    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(qrexec.hello(qrexec.VERSION))
        while await reader.read(65536):
            pass

    with pytest.raises(MachineError, match="did not end"):
        call(paths, guest, time=0.2)


def test_a_qube_that_complains_without_end_fills_a_pipe_and_no_more(paths: Paths) -> None:
    sent = 0

    async def guest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(qrexec.hello(qrexec.VERSION))
        while True:
            writer.write(b"".join(qrexec.data(qrexec.STDERR, bytes(65536))))
            await writer.drain()
            sent += 65536

    with pytest.raises(MachineError, match="did not end"):
        call(paths, guest, time=0.5)
    assert sent < 4 << 20


def test_no_qube_is_an_error(paths: Paths) -> None:
    with pytest.raises(MachineError, match="can't be run"):
        asyncio.run(run_service(paths, UUID, "qubes.ResizeDisk", b""))
    assert list(Path(paths.qubes).iterdir()) == []
