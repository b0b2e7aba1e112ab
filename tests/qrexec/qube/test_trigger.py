"""Calls out of a qube whose channels all pass through the agent: the program gets its own by descriptor."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE
from tests.runtime.ports import Recorder, Side, Wire

from cloison.qrexec.qube import trigger
from cloison.qrexec.qube.agent import ControlChannel
from cloison.qrexec.qube.trigger import MAX_UNANSWERED
from cloison.wire import qrexec
from cloison.wire.mux import Address

XID, PEER, PORT = 7, 0, 513


class Qube:
    """The agent over a multiplexer, its daemon played by a recorder, and one program at the trigger socket."""

    def __init__(self, host: Side, guest: Side, folder: Path) -> None:
        self.host = host
        self.agent = ControlChannel(guest.port, lambda _reason: None, xid=XID, fork_server="")
        guest.accept = lambda channel, _address: self.agent.opened(channel)
        self.path = str(folder / "agent.sock")
        self.agent.triggers.serve(self.path)
        self.daemon = host.recorder(Address(XID, 0, qrexec.CONTROL_PORT))
        self.daemon.send(qrexec.hello(4))
        self._decoder = qrexec.Decoder(qrexec.FROM_AGENT)
        self._read = 0

    async def said(self) -> qrexec.Message:
        """The agent's next message but its hello."""
        while True:
            message = self._decoder.next_message()
            if message is not None and not isinstance(message, qrexec.Hello):
                return message
            if message is None:
                await self.daemon.heard(self._read + 1)
                self._decoder.feed(self.daemon.got[self._read:])
                self._read = len(self.daemon.got)

    async def accepted(self) -> tuple[socket.socket, socket.socket]:
        """A program whose call was accepted: its connection to the agent, and the data channel it was given."""
        loop = asyncio.get_running_loop()
        program = socket.socket(socket.AF_UNIX)
        program.setblocking(False)
        await loop.sock_connect(program, self.path)
        await loop.sock_sendall(program, qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET"), "test.S"))
        trigger = await self.said()
        assert isinstance(trigger, qrexec.Trigger)
        self.daemon.send(qrexec.service_connect(PEER, PORT, trigger.request_id))
        ready = loop.create_future()
        loop.add_reader(program, lambda: ready.done() or ready.set_result(None))
        async with asyncio.timeout(PATIENCE):
            await ready
        loop.remove_reader(program)
        answer, fds, _, _ = socket.recv_fds(program, 8, 1)
        assert answer == qrexec.PARAMS.pack(PEER, PORT)
        channel = socket.socket(fileno=fds[0])
        channel.setblocking(False)
        return program, channel


def run(folder: Path, talk: Callable[[Qube], Awaitable[None]]) -> None:
    async def whole() -> None:
        with Wire() as (host, guest):
            qube = Qube(host, guest, folder)
            await talk(qube)
            qube.agent.triggers.close()

    asyncio.run(whole())


def test_bytes_both_ways_and_the_end_told_once(tmp_path: Path) -> None:
    async def talk(qube: Qube) -> None:
        loop = asyncio.get_running_loop()
        program, channel = await qube.accepted()
        service: Recorder = qube.host.recorder(Address(XID, PEER, PORT))
        service.send(b"from the service")
        assert await loop.sock_recv(channel, 100) == b"from the service"
        await loop.sock_sendall(channel, b"last words")
        channel.close()
        program.close()
        await service.heard(10)
        await service.until(lambda: service.ended)
        assert bytes(service.got) == b"last words"
        assert await qube.said() == qrexec.Terminated(PEER, PORT)
        for each in await qube.accepted():   # the next message is the next call's, not the end once more
            each.close()

    run(tmp_path, talk)


def test_a_program_that_is_gone_before_its_service_comes(tmp_path: Path) -> None:
    """Its port is free at once, and the service finds nobody."""
    async def talk(qube: Qube) -> None:
        program, channel = await qube.accepted()
        program.close()
        channel.close()
        assert await qube.said() == qrexec.Terminated(PEER, PORT)

    run(tmp_path, talk)


def test_back_pressure_goes_through(tmp_path: Path) -> None:
    """A program that reads nothing stops the service after what the buffers hold, and gets all of it later."""
    async def talk(qube: Qube) -> None:
        loop = asyncio.get_running_loop()
        program, channel = await qube.accepted()
        service = qube.host.recorder(Address(XID, PEER, PORT))
        data = bytes(range(256)) * 20000
        service.send(data)
        other = await qube.accepted()
        assert service.to_send
        got = bytearray()
        while len(got) < len(data):
            got += await loop.sock_recv(channel, 1 << 16)
        assert bytes(got) == data
        for each in (program, channel, *other):
            each.close()

    run(tmp_path, talk)


def test_while_many_requests_have_no_answer_nobody_else_is_heard_and_nobody_is_turned_away(tmp_path: Path) -> None:
    """Whether their programs have waited or not: a flood of calls that nobody waits for stops in `connect`."""
    async def talk(qube: Qube) -> None:
        loop = asyncio.get_running_loop()
        request = qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET"), "test.S")

        async def program() -> socket.socket:
            stream = socket.socket(socket.AF_UNIX)
            stream.setblocking(False)
            await loop.sock_connect(stream, qube.path)
            await loop.sock_sendall(stream, request)
            return stream

        idents, waiting = [], []
        for number in range(MAX_UNANSWERED):
            stream = await program()
            said = await qube.said()
            assert isinstance(said, qrexec.Trigger)
            idents.append(said.request_id)
            if number % 2:
                stream.close()                   # without waiting for the answer
            else:
                waiting.append(stream)
        late = await program()
        for _ in range(3):                       # the agent has turned to all that came, and has not heard the late one
            qube.daemon.send(qrexec.service_connect(PEER, PORT, qrexec.request_id("nobody")))
            assert await qube.said() == qrexec.Terminated(PEER, PORT)
        qube.daemon.send(qrexec.service_refused(idents[-2]))
        assert await loop.sock_recv(waiting[-1], 8) == b""
        said = await qube.said()
        assert isinstance(said, qrexec.Trigger)  # the late one's, now that there is room
        qube.daemon.send(qrexec.service_connect(PEER, PORT, idents[-1]))
        assert await qube.said() == qrexec.Terminated(PEER, PORT)
        qube.daemon.send(qrexec.service_refused(said.request_id))
        assert await loop.sock_recv(late, 8) == b""
        for each in (late, *waiting):
            each.close()

    run(tmp_path, talk)


def test_who_says_nothing_makes_room_the_oldest_first_and_who_has_asked_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trigger, "MAX_CLIENTS", 3)

    async def talk(qube: Qube) -> None:
        loop = asyncio.get_running_loop()
        programs: list[socket.socket] = []

        async def program(*, asks: bool) -> socket.socket:
            programs.append(socket.socket(socket.AF_UNIX))
            programs[-1].setblocking(False)
            await loop.sock_connect(programs[-1], qube.path)
            if asks:
                await loop.sock_sendall(programs[-1], qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET"), "test.S"))
                assert isinstance(await qube.said(), qrexec.Trigger)
            return programs[-1]

        first, second = await program(asks=False), await program(asks=False)
        third, fourth = await program(asks=True), await program(asks=True)
        async with asyncio.timeout(PATIENCE):
            assert await loop.sock_recv(first, 1) == b""
            fifth = await program(asks=True)
            assert await loop.sock_recv(second, 1) == b""
            assert await loop.sock_recv(await program(asks=False), 1) == b""     # all have asked: no room
        assert len(qube.agent.triggers._clients) == 3
        third.close()
        await program(asks=True)
        for each in (fourth, fifth):
            with pytest.raises(BlockingIOError):
                each.recv(1)
        for each in programs:
            each.close()

    run(tmp_path, talk)


def test_a_daemon_that_goes_owes_no_answers(tmp_path: Path) -> None:
    async def talk(qube: Qube) -> None:
        loop = asyncio.get_running_loop()
        for _ in range(MAX_UNANSWERED):
            with socket.socket(socket.AF_UNIX) as stream:
                stream.setblocking(False)
                await loop.sock_connect(stream, qube.path)
                await loop.sock_sendall(stream, qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET"), "test.S"))
                assert isinstance(await qube.said(), qrexec.Trigger)
        qube.host.port.close(qube.daemon.channel)
        with socket.socket(socket.AF_UNIX) as stream:
            stream.setblocking(False)
            await loop.sock_connect(stream, qube.path)
            await loop.sock_sendall(stream, qrexec.trigger_service4("", "dom0", qrexec.request_id("SOCKET"), "test.S"))
            assert await loop.sock_recv(stream, 8) == b""        # heard, and refused for want of a daemon

    run(tmp_path, talk)
