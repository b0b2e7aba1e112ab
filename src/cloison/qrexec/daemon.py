"""The host's end of one qube's qrexec: its local socket for callers, its control channel, its data ports (reference/qrexec.md 4-8).

What the guest sends here is the control channel only; data channels are handed through unread to the caller that owns them.
A guest that breaks the protocol loses qrexec (`on_violation`). Calls that a guest asks for are refused: no policy yet.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from cloison.errors import PeerError
from cloison.runtime.port import Handler, Outbox, Port
from cloison.runtime.relay import Relay
from cloison.wire import qrexec
from cloison.wire.mux import Address

MAX_CLIENTS = 512
MAX_FDS = 4
MAX_ANSWERS = 1 << 20         # bytes waiting for the agent before callers have to wait


@dataclass(frozen=True)
class Served:
    """The qube this daemon is for."""

    xid: int
    name: str
    uuid: str
    default_user: str


@dataclass
class _Call:
    """A data port in use: who asked, and the caller's end of the data channel until the guest takes it up."""

    client: _Client
    stream: socket.socket | None
    parts: set[str] = field(default_factory=lambda: {"guest", "data"})   # who still uses the port


class Daemon:
    """`start` when the guest is somebody; `close` removes what was made in the folder."""

    def __init__(self, port: Port, qube: Served, folder: str, on_violation: Callable[[str], None]) -> None:
        self._port, self._qube, self._folder, self._on_violation = port, qube, folder, on_violation
        self._ports = qrexec.Ports(qube.xid)
        self._calls: dict[int, _Call] = {}
        self._clients: set[_Client] = set()
        self._decoder = qrexec.Decoder(qrexec.FROM_AGENT)
        self._server: socket.socket | None = None
        self._outbox: Outbox | None = None
        self._loop = asyncio.get_running_loop()

    # -- life ----------------------------------------------------------------------------------------------------------

    def connect(self) -> None:
        """Open the control channel; the guest may not be listening yet."""
        channel = self._port.open(Address(self._qube.xid, 0, qrexec.CONTROL_PORT), self)
        self._outbox = Outbox(self._port, channel)
        self._outbox.put(qrexec.hello(qrexec.VERSION))

    def start(self) -> None:
        """Accept callers. Raises OSError."""
        path = self._path(str(self._qube.xid))
        _unlink(path)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        self._server.bind(path)
        self._server.listen(MAX_CLIENTS)
        for name in self._links():
            _unlink(self._path(name))
            os.symlink(os.path.basename(path), self._path(name))
        self._loop.add_reader(self._server, self._accept, self._server)

    def close(self) -> None:
        if self._server is not None:
            self._loop.remove_reader(self._server)
            self._server.close()
            self._server = None
            for name in (*self._links(), str(self._qube.xid)):
                _unlink(self._path(name))
        for client in list(self._clients):
            client.close()
        for call in self._calls.values():
            if call.stream is not None:
                call.stream.close()
        self._calls.clear()

    def _links(self) -> tuple[str, str]:
        return self._qube.name, f"uuid:{self._qube.uuid}"

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, f"qrexec.{name}")

    # -- callers -------------------------------------------------------------------------------------------------------

    def _accept(self, server: socket.socket) -> None:
        with contextlib.suppress(BlockingIOError):
            stream, _ = server.accept()
            if len(self._clients) >= MAX_CLIENTS:
                stream.close()
                return
            self._clients.add(_Client(stream, self))

    def request(self, client: _Client, message: qrexec.Message, stream: socket.socket | None) -> bytes:
        """A caller's one request; the answer to it. Raises PeerError when it can't be served."""
        if not isinstance(message, qrexec.Exec) or message.port != 0 or self._outbox is None:
            raise PeerError("not a request that can be served here")
        if stream is None:
            raise PeerError("a request without a data channel")
        port = self._ports.take(0)
        if port is None:
            raise PeerError("no free data port")
        self._calls[port] = _Call(client, stream)
        command = qrexec.with_default_user(message.command, self._qube.default_user)
        self._outbox.put(qrexec.exec_command(message.kind, 0, port, command))
        return qrexec.allocated(message.kind, self._qube.xid, port)

    def gone(self, client: _Client) -> None:
        self._clients.discard(client)

    # -- the guest -----------------------------------------------------------------------------------------------------

    def opened(self, channel: int, address: Address) -> Handler | None:
        """A data channel that the guest opens as vchan client: only one that was announced to it, once."""
        call = self._calls.get(address.port)
        if address.server != 0 or address.client != self._qube.xid or call is None or call.stream is None:
            return None
        stream, call.stream = call.stream, None
        return Relay(self._port, channel, stream, lambda: self._done(address.port, "data"))

    def data(self, untrusted: bytes) -> None:
        if self._outbox is None:
            return
        self._decoder.feed(untrusted)
        try:
            while (message := self._decoder.next_message()) is not None:
                self._from_agent(message, self._outbox)
        except PeerError as error:
            self._on_violation(str(error))
            return
        self._port.consumed(self._outbox.channel, len(untrusted))

    def _from_agent(self, message: qrexec.Message, outbox: Outbox) -> None:
        if isinstance(message, qrexec.Terminated):
            if message.domain == 0:
                self._done(message.port, "guest")
        elif isinstance(message, qrexec.Trigger | qrexec.BadTrigger):
            if len(outbox) > MAX_ANSWERS:
                raise PeerError("calls without end, and no answer is read")
            request_id = message.request_id if isinstance(message, qrexec.Trigger) else message.untrusted_request_id
            outbox.put(qrexec.service_refused(request_id))

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        self._outbox = None

    def _done(self, port: int, part: str) -> None:
        """One side has finished with a data port; it is free when both have, and the caller is told."""
        call = self._calls.get(port)
        if call is None:
            return
        call.parts.discard(part)
        if part == "guest" and call.stream is not None:   # it never took the channel up
            call.stream.close()
            call.stream = None
            call.parts.discard("data")
        if not call.parts:
            del self._calls[port]
            self._ports.free(0, port)
            call.client.close()


class _Client:
    """A caller on the local socket: one hello, one request, one answer; then it waits for the call's end."""

    def __init__(self, stream: socket.socket, daemon: Daemon) -> None:
        stream.setblocking(False)
        self._stream, self._daemon = stream, daemon
        self._decoder = qrexec.Decoder(qrexec.FROM_CLIENT)
        self._fds: list[int] = []
        self._requested = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(stream, self._readable)
        self._answer(qrexec.hello(qrexec.SOCKET_VERSION))

    def _readable(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._stream, qrexec.MAX_REQUEST + 64, MAX_FDS)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds += fds
        try:
            if not data or len(self._fds) > MAX_FDS:
                raise PeerError("the caller is gone, or sends too much")
            self._decoder.feed(data)
            while (message := self._decoder.next_message()) is not None:
                self._message(message)
        except PeerError:
            self.close()

    def _message(self, message: qrexec.Message) -> None:
        if isinstance(message, qrexec.Hello):
            return
        if self._requested:
            raise PeerError("a second request")
        self._requested = True
        stream = self._take_stream()
        try:
            answer = self._daemon.request(self, message, stream)
        except PeerError:
            if stream is not None:
                stream.close()
            raise
        self._answer(answer)

    def _take_stream(self) -> socket.socket | None:
        """The caller's end of the data channel. Raises PeerError when it sent something else than a socket."""
        if not self._fds:
            return None
        try:
            stream = socket.socket(fileno=self._fds[0])
        except OSError as error:
            raise PeerError("the data channel must be a socket", error.strerror) from error
        del self._fds[0]
        return stream

    def _answer(self, data: bytes) -> None:
        """Some twenty bytes into an empty socket buffer: it takes them at once, or the caller is gone."""
        with contextlib.suppress(OSError):
            self._stream.send(data)

    def close(self) -> None:
        if self._stream.fileno() < 0:
            return
        self._loop.remove_reader(self._stream)
        self._stream.close()
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._daemon.gone(self)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
