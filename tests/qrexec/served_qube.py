"""A qube without a VM: the host's daemon and the guest's real agent, or a scripted one, joined by a socket pair in one loop."""
from __future__ import annotations

import asyncio
import os
import pwd
import socket
from pathlib import Path
from typing import NamedTuple

from tests.patience import PATIENCE
from tests.runtime.ports import Recorder, Side

from cloison.qrexec.host.daemon import Daemon, Served
from cloison.qrexec.host.uses import GRACE, UNOPENED
from cloison.qrexec.qube.agent import ControlChannel
from cloison.runtime.port import Handler
from cloison.runtime.vchan_dialer import Dialer
from cloison.wire import qrexec
from cloison.wire.mux import GUEST, HOST, Address

USER = pwd.getpwuid(os.getuid()).pw_name
XID = 7


class Qube:
    """`scripted`: the guest's end is a plain `Side` whose control channel is a recorder, `self.control`.

    `vchans`: where peers meet it that send no descriptors. `grace`, `unopened`: seconds, of the daemon's.
    """

    def __init__(
        self, folder: Path, name: str = "work", xid: int = XID, *, scripted: bool = False, vchans: Path | None = None,
        grace: float = GRACE, unopened: float = UNOPENED,
    ) -> None:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        self.folder, self.name, self.xid = folder, name, xid
        self.host, self.guest = Side(ours, HOST), Side(theirs, GUEST)
        self.violations: list[str] = []
        self.control: Recorder | None = None
        self.agent = ControlChannel(self.guest.port, lambda _reason: None)
        self.agent.xid = xid
        self.guest.accept = self._scripted if scripted else self._real
        uuid = f"00000000-0000-4000-8000-{xid:012d}"
        self.dialer = Dialer(str(vchans)) if vchans is not None else None
        self.daemon = Daemon(self.host.port, Served(xid, name, uuid, USER), str(folder), self._violation, dialer=self.dialer,
                             grace=grace, unopened=unopened)
        self.daemon.connect()
        self.daemon.start()

    def __enter__(self) -> Qube:
        return self

    def __exit__(self, *_: object) -> None:
        for side in (self.host, self.guest):
            side.port.end("the test is over")
        self.daemon.close()
        if self.dialer is not None:
            self.dialer.close()
        for side in (self.host, self.guest):
            side.stream.close()

    def _real(self, channel: int, address: Address) -> Handler | None:
        return self.agent.opened(channel) if address.port == qrexec.CONTROL_PORT else None

    def _scripted(self, channel: int, address: Address) -> Handler:
        self.control = Recorder(self.guest.port, channel)
        self.guest.tell()
        return self.control

    def _violation(self, reason: str) -> None:
        """As a warden does."""
        self.violations.append(reason)
        self.host.port.end(reason)

    async def scripted_control(self) -> Recorder:
        """The guest's control channel, once the daemon has said hello on it."""
        await self.guest.until(lambda: self.control is not None)
        assert self.control is not None
        return self.control

    def caller(self, service: str, *, kind: int = qrexec.EXEC_CMDLINE) -> Caller:
        return Caller(self.folder / f"qrexec.{self.name}", f"DEFAULT:QUBESRPC {service} dom0", kind)

    def command(self, command: str, *, kind: int = qrexec.EXEC_CMDLINE) -> Caller:
        return Caller(self.folder / f"qrexec.{self.name}", f"DEFAULT:{command}", kind)

    def answering(self, ident: bytes) -> Caller:
        """Somebody who answers a request of the qube's in the daemon's place."""
        return Caller(self.folder / f"qrexec.{self.name}", "", qrexec.SERVICE_CONNECT, ident)


class Result(NamedTuple):
    out: bytes
    err: bytes
    status: int | None      # None: the channel went away without one


class Caller:
    """One call, step by step, so that a test can stop at any of them."""

    def __init__(self, path: Path, command: str, kind: int, ident: bytes = b"") -> None:
        self._loop = asyncio.get_running_loop()
        self._path, self._command, self._kind, self._ident = str(path), command, kind, ident
        self.control = socket.socket(socket.AF_UNIX)
        self.data, self._far = socket.socketpair()
        for each in (self.control, self.data):
            each.setblocking(False)
        self._decoder = qrexec.Decoder(qrexec.FROM_SERVICE)
        self.streams = {qrexec.STDOUT: bytearray(), qrexec.STDERR: bytearray()}
        self.ended: list[int] = []
        self.status: int | None = None

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.control, self.data, self._far):
            each.close()

    async def request(self) -> qrexec.Allocated | None:
        """Ask; the daemon's answer, None when it hung up."""
        await self._loop.sock_connect(self.control, self._path)
        hello = qrexec.hello(qrexec.SOCKET_VERSION)
        message = qrexec.exec_command(self._kind, 0, 0, self._command)
        if self._ident:
            message = qrexec.service_connect(0, 0, self._ident)
        socket.send_fds(self.control, [hello + message], [self._far.fileno()])
        self._far.close()
        await self._loop.sock_sendall(self.data, qrexec.hello(qrexec.VERSION))
        decoder = qrexec.Decoder(qrexec.TO_CLIENT)
        async with asyncio.timeout(PATIENCE):
            while data := await self._receive(self.control):
                decoder.feed(data)
                while (answer := decoder.next_message()) is not None:
                    if isinstance(answer, qrexec.Allocated):
                        return answer
        return None

    async def send(self, data: bytes) -> None:
        for message in qrexec.data(qrexec.STDIN, data):
            await self._loop.sock_sendall(self.data, message)

    async def send_eof(self) -> None:
        await self._loop.sock_sendall(self.data, qrexec.end_of_stream(qrexec.STDIN))

    async def read(self) -> bool:
        """Take what comes next; False when the channel has ended."""
        async with asyncio.timeout(PATIENCE):
            data = await self._receive(self.data)
        self._decoder.feed(data)
        while (message := self._decoder.next_message()) is not None:
            if isinstance(message, qrexec.Exit):
                self.status = message.status
            elif isinstance(message, qrexec.Data):
                self.streams[message.kind] += message.payload
                self.ended += [] if message.payload else [message.kind]
        return bool(data)

    async def result(self) -> Result:
        while await self.read():
            pass
        return Result(bytes(self.streams[qrexec.STDOUT]), bytes(self.streams[qrexec.STDERR]), self.status)

    async def hung_up(self) -> bool:
        """Wait for the daemon to hang up on the local socket: the port is free."""
        async with asyncio.timeout(PATIENCE):
            return not await self._receive(self.control)

    async def run(self, stdin: bytes | None = b"") -> Result:
        """From start to end. `stdin` None: its end is never sent."""
        with self:
            assert await self.request() is not None
            if stdin is not None:
                sending = asyncio.ensure_future(self._feed(stdin))
                result = await self.result()
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)
                return result
            return await self.result()

    async def _feed(self, stdin: bytes) -> None:
        await self.send(stdin)
        await self.send_eof()

    async def _receive(self, stream: socket.socket) -> bytes:
        try:
            return await self._loop.sock_recv(stream, 1 << 17)
        except ConnectionResetError:
            return b""
