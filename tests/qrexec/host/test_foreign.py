"""Peers that take no descriptors, as the reference's: their end of a data channel is a vchan-socket (reference/qrexec.md 2.2)."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.qrexec.host.test_outgoing import A, B, Caller, Place, allow, place
from tests.qrexec.served_qube import USER, XID, Qube, Result
from tests.runtime.ports import PATIENCE, News, Recorder

from cloison.qrexec.host.budget import Budget
from cloison.qrexec.host.outgoing import Outgoing
from cloison.runtime.vchan_socket import VchanSocket
from cloison.wire import qrexec
from cloison.wire.mux import Address

__all__ = ["place"]
OTHER = 12


class End(News):
    """A foreign program's end of a data channel, as vchan server."""

    def __init__(self, vchans: VchanSocket) -> None:
        super().__init__()
        self.vchans = vchans
        self.recorder: Recorder | None = None

    def accept(self, channel: int) -> Recorder:
        self.recorder = Recorder(self.vchans, channel)
        self.tell()
        return self.recorder

    async def accepted(self) -> Recorder:
        await self.until(lambda: self.recorder is not None)
        assert self.recorder is not None
        return self.recorder


async def request(path: Path, message: bytes) -> tuple[socket.socket, qrexec.Message | None]:
    """What a client that knows of no descriptors does; the answer, if one comes."""
    loop = asyncio.get_running_loop()
    control = socket.socket(socket.AF_UNIX)
    control.setblocking(False)
    await loop.sock_connect(control, str(path))
    await loop.sock_sendall(control, qrexec.hello(qrexec.SOCKET_VERSION) + message)
    decoder = qrexec.Decoder(qrexec.TO_CLIENT)
    async with asyncio.timeout(PATIENCE):
        while data := await loop.sock_recv(control, 4096):
            decoder.feed(data)
            while (answer := decoder.next_message()) is not None:
                if isinstance(answer, qrexec.Allocated):
                    return control, answer
    return control, None


def status_in(got: bytearray) -> tuple[bytes, int | None]:
    decoder = qrexec.Decoder(qrexec.FROM_SERVICE)
    decoder.feed(got)
    out, status = b"", None
    while (message := decoder.next_message()) is not None:
        if isinstance(message, qrexec.Data) and message.kind == qrexec.STDOUT:
            out += message.payload
        elif isinstance(message, qrexec.Exit):
            status = message.status
    return out, status


def with_vchans(place: Place, work: Callable[[VchanSocket, Path], Awaitable[None]]) -> None:
    folder = place.folder / "vchan"
    folder.mkdir()

    async def run() -> None:
        vchans = VchanSocket(str(folder))
        try:
            await work(vchans, folder)
        finally:
            vchans.end()

    asyncio.run(run())
    assert os.listdir(folder) == []


@pytest.mark.parametrize(("service", "outcome"), [("test.Cat", (b"in", 0)), ("test.Missing", (b"", 127))])
def test_a_client_without_descriptors(place: Place, service: str, outcome: tuple[bytes, int]) -> None:
    async def work(vchans: VchanSocket, folder: Path) -> None:
        with Qube(place.folder, vchans=folder) as qube:
            command = qrexec.exec_command(qrexec.EXEC_CMDLINE, 0, 0, f"{USER}:QUBESRPC {service} dom0")
            control, answer = await request(place.folder / "qrexec.work", command)
            assert answer == qrexec.Allocated(qrexec.EXEC_CMDLINE, XID, 513)
            end = End(vchans)
            vchans.listen(Address(0, XID, 513), end.accept)
            recorder = await end.accepted()
            recorder.send(qrexec.hello(4) + b"".join(qrexec.data(qrexec.STDIN, b"in")) + qrexec.end_of_stream(qrexec.STDIN))
            await recorder.until(lambda: recorder.ended)
            assert status_in(recorder.got) == outcome
            with control:
                assert await asyncio.get_running_loop().sock_recv(control, 1) == b""     # the call is over
            assert qube.violations == []

    with_vchans(place, work)


def test_a_foreign_daemons_qube_calls_ours(place: Place) -> None:
    """Its agent listens, ours comes as client."""
    async def work(vchans: VchanSocket, folder: Path) -> None:
        with Qube(place.folder, vchans=folder):
            command = qrexec.exec_command(qrexec.EXEC_CMDLINE, OTHER, 0, f"{USER}:QUBESRPC test.Cat foreign")
            control, answer = await request(place.folder / "qrexec.work", command)
            assert answer == qrexec.Allocated(qrexec.EXEC_CMDLINE, XID, 514)
            end = End(vchans)
            vchans.listen(Address(OTHER, XID, 514), end.accept)
            recorder = await end.accepted()
            recorder.send(qrexec.hello(4) + qrexec.end_of_stream(qrexec.STDIN))
            await recorder.until(lambda: recorder.ended)
            assert status_in(recorder.got) == (b"", 0)
            control.close()

    with_vchans(place, work)


def test_our_qube_calls_a_foreign_daemons(place: Place) -> None:
    place.policy = allow("foreign")
    over = asyncio.Event()

    async def daemon(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """It reads with plain `read`: descriptors that come along are lost."""
        writer.write(qrexec.hello(qrexec.SOCKET_VERSION))
        decoder = qrexec.Decoder(qrexec.FROM_CLIENT)
        answered = False
        while not answered:
            decoder.feed(await reader.read(4096))
            while (message := decoder.next_message()) is not None:
                if isinstance(message, qrexec.Exec):
                    assert (message.domain, message.command) == (A, f"{USER}:QUBESRPC test.Any+ work")
                    writer.write(qrexec.allocated(message.kind, B, 515))
                    answered = True
        await over.wait()
        writer.close()

    async def work(vchans: VchanSocket, folder: Path) -> None:
        server = await asyncio.start_unix_server(daemon, str(place.folder / "qrexec.foreign"))
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(place.server)
            qube = stack.enter_context(Qube(place.folder, "work", A, scripted=True, vchans=folder))
            outgoing = Outgoing(qube.daemon, place.host, Budget())
            stack.push_async_callback(outgoing.close)
            control = await qube.scripted_control()
            control.send(qrexec.hello(4))
            calling = asyncio.ensure_future(Caller(qube, control, outgoing).call("test.Any", b"in"))
            service = Recorder(vchans)
            service.channel = vchans.open(Address(A, B, 515), service)
            service.send(qrexec.hello(4) + b"".join(qrexec.data(qrexec.STDOUT, b"out")))
            await service.until(lambda: service.got.endswith(qrexec.end_of_stream(qrexec.STDIN)))
            service.send(qrexec.exit_code(7))
            vchans.close(service.channel)
            assert await calling == Result(b"out", b"", 7)
            over.set()
        server.close()

    with_vchans(place, work)


def test_a_peer_that_never_comes_leaves_no_socket_when_the_qube_has_given_up(place: Place) -> None:
    async def work(_vchans: VchanSocket, folder: Path) -> None:
        with Qube(place.folder, scripted=True, vchans=folder) as qube:
            control = await qube.scripted_control()
            control.send(qrexec.hello(4))
            made: dict[int, Recorder] = {}
            qube.guest.record_all(made)
            qube.daemon.connect_peer(qrexec.request_id("SOCKET9"), OTHER, 600, None)
            await qube.guest.until(lambda: 600 in made)
            assert len(os.listdir(folder)) == 1
            qube.guest.port.close(made[600].channel)
            qube.guest.port.control(b"closed")
            await qube.host.until(lambda: bool(qube.host.controls))
            assert os.listdir(folder) == [] and not qube.daemon._relays

    with_vchans(place, work)
