"""Calls out of a qube: the socket that the qube's programs ask on (reference/qrexec.md 9.1).

Its clients are any programs of the qube. What they ask for is checked here for its form only; the host decides. A call's id is a
number that is never used again: an answer can't reach another program than the one that asked.

The host answers in its own time. While many requests have no answer, whether or not their programs have waited for it, nobody
else is heard: who wants to call waits in `connect`, which costs the qube's processor nothing.
"""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Protocol

from cloison.errors import PeerError
from cloison.runtime.listener import Listener
from cloison.runtime.port import Channels
from cloison.runtime.relay import Relay
from cloison.wire import qrexec
from cloison.wire.mux import Address

SOCKET = "/var/run/qubes/qrexec-agent"
MAX_CLIENTS = 256
MAX_UNANSWERED = 256
_READ = 65536


class Daemon(Protocol):
    """What calls need of the control channel."""

    channels: Channels
    xid: int
    gives_descriptors: bool              # a data channel reaches its program by descriptor; else the program listens itself

    def trigger(self, request: qrexec.Trigger) -> bool: ...
    def terminated(self, domain: int, port: int) -> None: ...


class TriggerSocket:
    """Open from `serve` to `close`."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._listener: Listener | None = None
        self._clients: dict[_Client, None] = {}            # the oldest first
        self._asking: dict[bytes, _Client | None] = {}     # by request id; None: the program is gone
        self._last = 0
        self._hearing = True

    def serve(self, path: str) -> None:
        """Idempotent. Every program of the qube may use it, as upstream. Raises OSError."""
        if self._listener is None:       # whoever may run programs here may ask for calls; the host's policy decides
            self._listener = Listener(path, MAX_CLIENTS, self._accept, 0o777)
            self._hearing = True

    def close(self) -> None:
        """The socket is gone, and so are the calls."""
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        for client in list(self._clients):
            client.close()

    def daemon_lost(self) -> None:
        """What was asked gets no answer any more."""
        asking = list(self._asking.values())
        self._asking.clear()
        for client in asking:
            if client is not None:
                client.close()
        self._hear()

    def connect(self, answer: qrexec.ServiceConnect) -> None:
        """The host has accepted a call. Whoever asked may be gone by now."""
        client = self._answered(answer.request_id)
        if client is None:
            self._daemon.terminated(answer.domain, answer.port)
        else:
            client.connect(answer.domain, answer.port)

    def refused(self, answer: qrexec.ServiceRefused) -> None:
        client = self._answered(answer.request_id)
        if client is not None:
            client.close()

    def _answered(self, request_id: bytes) -> _Client | None:
        client = self._asking.pop(request_id, None)
        self._hear()
        return client

    def _hear(self) -> None:
        """New programs, unless too many requests wait."""
        hearing = len(self._asking) < MAX_UNANSWERED
        if self._listener is None or hearing == self._hearing:
            return
        self._hearing = hearing
        if hearing:
            self._listener.resume()
        else:
            self._listener.pause()

    def _accept(self, stream: socket.socket) -> None:
        if len(self._clients) >= MAX_CLIENTS and not self._make_room():
            stream.close()
            return
        self._clients[_Client(stream, self, self._daemon)] = None

    def _make_room(self) -> bool:
        """Drop the oldest of those who have not asked for anything yet: sitting there must not keep others out."""
        silent = next((client for client in self._clients if client.silent), None)
        if silent is not None:
            silent.close()
        return silent is not None

    def ask(self, client: _Client, untrusted: qrexec.Trigger) -> bytes | None:
        """Its request id if the host was asked."""
        self._last += 1
        request_id = qrexec.request_id(f"SOCKET{self._last}")
        if not self._daemon.trigger(untrusted._replace(request_id=request_id)):
            return None
        self._asking[request_id] = client
        self._hear()
        return request_id

    def gone(self, client: _Client, request_id: bytes | None) -> None:
        self._clients.pop(client, None)
        if request_id is not None and request_id in self._asking:
            self._asking[request_id] = None              # the host still owes an answer


class _Client:
    """A program: one request, one answer of 8 bytes; it keeps the connection for as long as its call lasts."""

    def __init__(self, stream: socket.socket, owner: TriggerSocket, daemon: Daemon) -> None:
        stream.setblocking(False)
        self._stream, self._owner, self._daemon = stream, owner, daemon
        self._decoder = qrexec.Decoder(qrexec.FROM_CLIENT_VM)
        self._request_id: bytes | None = None
        self._on_close: Callable[[], None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(stream, self._readable)
        self.silent = True

    def _readable(self) -> None:
        try:
            untrusted = self._stream.recv(_READ)
            self._decoder.feed(untrusted)
            message = self._decoder.next_message()
        except BlockingIOError:
            return
        except (OSError, PeerError):
            untrusted, message = b"", None
        if not untrusted or not self.silent:      # nothing more is to come until it hangs up
            self.close()
        elif message is not None:
            self.silent = False
            self._request_id = self._owner.ask(self, message) if isinstance(message, qrexec.Trigger) else None
            if self._request_id is None:
                self.close()

    def connect(self, domain: int, port: int) -> None:
        self._request_id = None
        answer = qrexec.PARAMS.pack(domain, port)
        if not self._daemon.gives_descriptors:
            self._on_close = lambda: self._daemon.terminated(domain, port)
            self._answer(answer, [])
            return
        ours, theirs = socket.socketpair()
        address = Address(self._daemon.xid, domain, port)
        relay = Relay(self._daemon.channels, None, ours, lambda: self._daemon.terminated(domain, port))

        def give_up() -> None:
            """A relay that has begun ends by itself, with what the program sent last."""
            if relay.channel is None:
                self._daemon.channels.unlisten(address)
                relay.end()

        self._on_close = give_up
        with theirs:
            self._daemon.channels.listen(address, relay.bind)
            self._answer(answer, [theirs.fileno()])

    def _answer(self, answer: bytes, fds: list[int]) -> None:
        """Eight bytes into an empty socket buffer: it takes them at once, or the program is gone."""
        try:
            socket.send_fds(self._stream, [answer], fds)
        except OSError:
            self.close()

    def close(self) -> None:
        if self._stream.fileno() < 0:
            return
        self._loop.remove_reader(self._stream)
        self._stream.close()
        self._owner.gone(self, self._request_id)
        if self._on_close is not None:
            self._on_close()
