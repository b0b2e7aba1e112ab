"""A qube's agent without a qube: the real control channel over Unix sockets, and a host played by the test."""
from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import socket
from collections.abc import AsyncIterator
from pathlib import Path

from tests.patience import PATIENCE

from cloison.qrexec.qube.agent import ControlChannel
from cloison.qrexec.qube.sessions import Sessions
from cloison.runtime.vchan_dialer import file_name
from cloison.runtime.vchan_socket import VchanSocket
from cloison.wire import qrexec
from cloison.wire.mux import Address

USER = pwd.getpwuid(os.getuid()).pw_name
XID, PEER, PORT = 42, 43, 520


class Stream:
    """One end of a channel: messages out of it, bytes into it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, role: qrexec.Role) -> None:
        self._reader, self.writer = reader, writer
        self._decoder = qrexec.Decoder(role)

    async def next(self) -> qrexec.Message | None:
        """The next message, None when the other side has hung up."""
        async with asyncio.timeout(PATIENCE):
            while (message := self._decoder.next_message()) is None:
                try:
                    data = await self._reader.read(1 << 16)
                except ConnectionError:
                    data = b""
                if not data:
                    return None
                self._decoder.feed(data)
        return message

    async def rest(self) -> list[qrexec.Message]:
        """All messages until the other side hangs up, parts of one stream joined."""
        found: list[qrexec.Message] = []
        while (message := await self.next()) is not None:
            last = found[-1] if found else None
            if isinstance(message, qrexec.Data) and isinstance(last, qrexec.Data) and message.payload and last.payload \
                    and message.kind == last.kind:
                found[-1] = qrexec.Data(message.kind, last.payload + message.payload)
            else:
                found.append(message)
        return found

    async def send(self, *messages: bytes) -> None:
        self.writer.write(b"".join(messages))
        await self.writer.drain()

    async def say(self, text: bytes) -> None:
        await self.send(*qrexec.data(qrexec.STDIN, text))

    async def end_input(self) -> None:
        await self.send(qrexec.end_of_stream(qrexec.STDIN))

    def close(self) -> None:
        self.writer.close()


class Host:
    """The daemon, and whoever is at the other end of data channels."""

    def __init__(self, folder: Path, *, fork_server: str = "", sessions: Sessions | None = None) -> None:
        self.folder = folder
        self._others = children_of_ours()
        self.lost: list[str] = []
        self.channels = VchanSocket(str(folder))
        self.agent = ControlChannel(
            self.channels, self.lost.append, xid=XID, gives_descriptors=False, fork_server=fork_server, sessions=sessions)
        self.channels.listen(Address(XID, 0, qrexec.CONTROL_PORT), self.agent.opened)
        self.agent.triggers.serve(str(folder / "agent.sock"))
        self.streams: list[Stream] = []

    async def connect(self, version: int = qrexec.VERSION) -> None:
        """Be the daemon."""
        path = str(self.folder / file_name(Address(XID, 0, qrexec.CONTROL_PORT)))
        self.daemon = self._keep(Stream(*await asyncio.open_unix_connection(path), qrexec.FROM_AGENT))
        assert await self.daemon.next() == qrexec.Hello(qrexec.VERSION)
        await self.daemon.send(qrexec.hello(version))

    async def call(self, command: str, kind: int = qrexec.EXEC_CMDLINE, port: int = PORT, user: str = USER) -> Stream:
        """Start a command line as that user; the data channel, after its handshake."""
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(self.folder / file_name(Address(PEER, XID, port))))
            listener.listen(1)
            listener.setblocking(False)
            await self.daemon.send(qrexec.exec_command(kind, PEER, port, f"{user}:{command}"))
            async with asyncio.timeout(PATIENCE):
                accepted, _ = await asyncio.get_running_loop().sock_accept(listener)
        os.unlink(self.folder / file_name(Address(PEER, XID, port)))
        stream = self._keep(Stream(*await asyncio.open_unix_connection(sock=accepted), qrexec.FROM_SERVICE))
        assert await stream.next() == qrexec.Hello(qrexec.VERSION)
        await stream.send(qrexec.hello(qrexec.VERSION))
        return stream

    async def terminated(self, port: int = PORT) -> bool:
        """The agent says that the channel is over, and nothing else."""
        return await self.daemon.next() == qrexec.Terminated(PEER, port)

    async def program(self) -> Stream:
        """A program of the qube at the trigger socket."""
        return self._keep(Stream(*await asyncio.open_unix_connection(str(self.folder / "agent.sock")), qrexec.FROM_CLIENT_VM))

    async def raw(self, program: Stream, size: int) -> bytes:
        """What the agent answers a program; less than asked when it hung up."""
        async with asyncio.timeout(PATIENCE):
            try:
                return await program._reader.readexactly(size)
            except asyncio.IncompleteReadError as error:
                return error.partial
            except ConnectionError:
                return b""

    def _keep(self, stream: Stream) -> Stream:
        self.streams.append(stream)
        return stream

    async def close(self) -> None:
        for stream in self.streams:
            stream.close()
        await programs_ended(self._others)
        self.agent.triggers.close()
        self.channels.end()
        for stream in self.streams:
            with contextlib.suppress(ConnectionError):
                await stream.writer.wait_closed()


def descriptors() -> dict[str, str]:
    """What is open, by number."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):     # of the listing itself
            found[name] = os.readlink(f"/proc/self/fd/{name}")
    return found


def children_of_ours() -> set[int]:
    return set(map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()))


async def programs_ended(others: set[int]) -> None:
    """Until no child is left but those others: whoever started one reaps it in this loop."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(PATIENCE):
        while children := children_of_ours() - others:
            try:
                pidfd = os.pidfd_open(children.pop())
            except ProcessLookupError:
                continue
            over = loop.create_future()
            loop.add_reader(pidfd, over.cancel)
            await asyncio.wait([over])
            loop.remove_reader(pidfd)
            os.close(pidfd)


@contextlib.asynccontextmanager
async def host(
    folder: Path, version: int = qrexec.VERSION, *, fork_server: str = "", sessions: Sessions | None = None,
) -> AsyncIterator[Host]:
    before = descriptors()
    place = Host(folder, fork_server=fork_server, sessions=sessions)
    try:
        await place.connect(version)
        yield place
    finally:
        await place.close()
    for _ in range(100):                 # turns of the loop, in which each end sees that the other has hung up
        if descriptors() == before:
            break
        await asyncio.sleep(0)
    assert descriptors() == before, "something was left open"


def service(folder: Path, name: str, text: str) -> None:
    """An executable service in the folder that the agent looks in."""
    path = folder / "rpc" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text if text.startswith("#!") else f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
