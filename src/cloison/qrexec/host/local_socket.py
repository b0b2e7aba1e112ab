"""A qrexec daemon's local socket: its names in the folder, and callers that each make one request (reference/qrexec.md 5)."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from cloison.errors import PeerError
from cloison.runtime.listener import Listener
from cloison.wire import qrexec

MAX_CLIENTS = 512
MAX_FDS = 4

# Gets the caller, its request and its end of the data channel, if it sent one, which is the callee's then; gives the answer.
# Raises PeerError, and takes nothing, when the request can't be served.
Request = Callable[["Client", qrexec.Message, socket.socket | None], bytes]


class LocalSocket:
    """`names`: the socket's own first, then those of links to it. `request` serves callers."""

    def __init__(self, folder: str, names: tuple[str, ...], request: Request) -> None:
        self._paths = [os.path.join(folder, f"qrexec.{name}") for name in names]
        self.request = request
        self._listener: Listener | None = None
        self._clients: set[Client] = set()

    @property
    def listening(self) -> bool:
        return self._listener is not None

    def listen(self) -> None:
        """Accept callers; what a killed daemon left is replaced. Raises OSError."""
        path, *links = self._paths
        self._listener = Listener(path, MAX_CLIENTS, self._accept)
        for link in links:
            _unlink(link)
            os.symlink(os.path.basename(path), link)

    def close(self) -> None:
        """Callers are hung up on, the names go. Idempotent."""
        if self._listener is not None:
            for link in self._paths[1:]:
                _unlink(link)
            self._listener.close()
            self._listener = None
        for client in list(self._clients):
            client.close()

    def forget(self, client: Client) -> None:
        self._clients.discard(client)

    def _accept(self, stream: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            stream.close()
        else:
            self._clients.add(Client(stream, self))


class Client:
    """A caller: one hello, one request, one answer; then it waits for the call's end, which `close` tells it."""

    def __init__(self, stream: socket.socket, owner: LocalSocket) -> None:
        stream.setblocking(False)
        self._stream, self._owner = stream, owner
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
            answer = self._owner.request(self, message, stream)
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
        if data:
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
        self._owner.forget(self)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
