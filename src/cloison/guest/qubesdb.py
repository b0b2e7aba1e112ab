"""The qube's copy of its QubesDB: filled at the start, kept equal over vchan 111, served to programs on a local socket.

`qubesdb-read`, `-write`, `-list` and the like are clients of that socket and speak upstream's protocol (wire/qdb.py).
"""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping

from cloison.errors import PeerError
from cloison.qdb.tree import GUEST, Fired, Outcome, Tree, notice
from cloison.runtime.listener import Listener
from cloison.runtime.port import Outbox, Port
from cloison.wire import qdb

SOCKET = "/run/qubes/qubesdb.sock"
MAX_CLIENTS = 128
MAX_WAITING = 4 << 20          # bytes for one client that doesn't read: everything there can be, and more


class QubesDb:
    """One tree, its peer on the host, and its local clients."""

    def __init__(self, port: Port) -> None:
        self._port = port
        self._tree = Tree(GUEST)
        self._outbox: Outbox | None = None
        self._decoder = qdb.Decoder(qdb.VCHAN)
        self._clients: set[_Client] = set()
        self._listener: Listener | None = None

    def fill(self, entries: dict[str, str]) -> None:
        """What the host said this qube is, before any channel is open."""
        for path, value in entries.items():
            self._tree.store(path, value.encode(), by_guest=False)

    def change(self, entries: Mapping[str, str | None]) -> None:
        """Write entries in the agent's own name, in this order; None removes one. Raises ValueError for what can't be stored."""
        for path, value in entries.items():
            outcome = self._tree.remove(path) if value is None else self._tree.write(path, value.encode())
            if outcome.forward and self._outbox is not None:
                self._outbox.put(outcome.forward)
            self._notify(outcome.fired)

    # -- the host's side -----------------------------------------------------------------------------------------------

    def opened(self, channel: int) -> QubesDb:
        self._decoder = qdb.Decoder(qdb.VCHAN)
        self._outbox = Outbox(self._port, channel)
        self._outbox.put(self._tree.request_sync())
        return self

    def data(self, untrusted: bytes) -> None:
        if self._outbox is None:
            return
        self._decoder.feed(untrusted)
        while (message := self._decoder.next_message()) is not None:
            outcome = self._tree.handle_peer(message)
            self._outbox.put(outcome.reply)
            self._notify(outcome.fired)
        self._port.consumed(self._outbox.channel, len(untrusted))

    def writable(self) -> None:
        if self._outbox is not None:
            self._outbox.flush()

    def closed(self) -> None:
        self._outbox = None
        self._tree.peer_lost()

    # -- programs in the qube ------------------------------------------------------------------------------------------

    def serve(self, path: str) -> None:
        """Open the local socket. Reading is for everyone, as upstream's is."""
        if self._listener is None:
            self._listener = Listener(path, MAX_CLIENTS, self._accept, 0o666)

    def close(self) -> None:
        """Nobody is served any more."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for client in list(self._clients):
            client.close()

    def _accept(self, stream: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS:
            stream.close()
        else:
            self._clients.add(_Client(stream, self))

    def handle(self, client: _Client, message: qdb.Message) -> bytes:
        """A client's message; the answer. Raises PeerError."""
        outcome: Outcome = self._tree.handle_client(client, message)
        if outcome.forward and self._outbox is not None:
            self._outbox.put(outcome.forward)
        self._notify(outcome.fired)
        return outcome.reply

    def gone(self, client: _Client) -> None:
        self._tree.forget(client)
        self._clients.discard(client)

    def _notify(self, fired: tuple[Fired, ...]) -> None:
        for event in fired:
            if isinstance(event.client, _Client):
                event.client.send(notice(event.path))


class _Client:
    """A program on the local socket."""

    def __init__(self, stream: socket.socket, database: QubesDb) -> None:
        self._stream, self._database = stream, database
        self._decoder = qdb.Decoder(qdb.TO_DAEMON)
        self._waiting = b""
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(stream, self._readable)

    def _readable(self) -> None:
        try:
            data = self._stream.recv(65536)
            self._decoder.feed(data)
            while data and (message := self._decoder.next_message()) is not None:
                self.send(self._database.handle(self, message))
        except (OSError, PeerError):
            data = b""
        if not data:
            self.close()

    def send(self, data: bytes) -> None:
        self._waiting += data
        self._flush()

    def _flush(self) -> None:
        try:
            self._waiting = self._waiting[self._stream.send(self._waiting):] if self._waiting else b""
        except BlockingIOError:
            pass
        except OSError:
            self._waiting = b""
        if len(self._waiting) > MAX_WAITING:
            self.close()
        elif self._waiting:
            self._loop.add_writer(self._stream, self._flush)
        elif self._stream.fileno() >= 0:
            self._loop.remove_writer(self._stream)

    def close(self) -> None:
        if self._stream.fileno() >= 0:
            self._loop.remove_reader(self._stream)
            self._loop.remove_writer(self._stream)
            self._stream.close()
            self._database.gone(self)
