"""vchans as Unix sockets, one each: the transport of tests and of other implementations (reference/qrexec.md 2.2).

`VchanSocket` puts the interface of `runtime/port.py` on the connections that a `Dialer` makes.
"""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Mapping

from cloison.runtime.hangup import watch_hangup
from cloison.runtime.held import UNBOUNDED
from cloison.runtime.port import Handler
from cloison.runtime.vchan_dialer import Dialer, tuned
from cloison.wire.mux import WINDOW, Address

FOLDER = "/var/run/vchan"
READ = 1 << 17
MAX_EARLY = WINDOW             # bytes that may be sent before the peer is there
PARTING = 5.0                  # s that a peer has for hanging up after us


def folder(environ: Mapping[str, str]) -> str:
    return environ.get("VCHAN_SOCKET_DIR") or FOLDER


class _Channel:
    """One socket and its handler. Before the socket is there, what is sent waits here."""

    def __init__(self, owner: VchanSocket, handler: Handler) -> None:
        self._owner, self.handler = owner, handler
        self._stream: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self.number = 0
        self._early = bytearray()
        self._unconsumed = 0
        self._starved = False
        self._reading = False
        self._unwatch: Callable[[], None] | None = None      # set while nothing is read
        self.closing = False
        self.give_up: Callable[[], None] | None = None       # set while it waits for its server

    def connected(self, stream: socket.socket) -> None:
        self._stream = stream
        self.give_up = None
        if self._early:
            self._loop.add_writer(stream, self._flush_early)
        elif self.closing:
            self.drop()
            return
        if not self.closing:
            self._read(True)

    def _flush_early(self) -> None:
        assert self._stream is not None
        try:
            del self._early[:self._stream.send(self._early)]
        except BlockingIOError:
            return
        except OSError:
            self._early.clear()
        if self._early:
            return
        self._loop.remove_writer(self._stream)
        if self.closing:
            self._part()
        elif self._starved:
            self._writable()

    def send(self, data: bytes | memoryview) -> int:
        if self._stream is None or self._early:
            sent = min(len(data), MAX_EARLY - len(self._early))
            self._early += data[:sent]
        else:
            try:
                sent = self._stream.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                return len(data)                     # the peer is gone; reading will tell
        if sent < len(data) and not self._starved:
            self._starved = True
            if self._stream is not None and not self._early:
                self._loop.add_writer(self._stream, self._writable)
        return sent

    def _writable(self) -> None:
        self._starved = False
        if self._stream is not None:
            self._loop.remove_writer(self._stream)
        self.handler.writable()

    def consumed(self, count: int) -> None:
        self._unconsumed -= count
        if not self._reading and self._stream is not None and self._unconsumed < WINDOW // 2 and not self.closing:
            self._read(True)

    def _read(self, on: bool) -> None:
        assert self._stream is not None
        self._reading = on
        if on:
            if self._unwatch is not None:
                self._unwatch()
                self._unwatch = None
            self._loop.add_reader(self._stream, self._readable)
        else:
            self._loop.remove_reader(self._stream)
            self._unwatch = watch_hangup(self._stream, self._hung_up)

    def _readable(self) -> None:
        if self._receive() and self._unconsumed >= WINDOW and self._stream is not None and not self.closing:
            self._read(False)

    def _receive(self) -> bool:
        """One read, handed on. False when there is nothing now, or never more."""
        assert self._stream is not None
        try:
            data = self._stream.recv(READ)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if data:
            self._unconsumed += len(data)
            self.handler.data(data)
            return True
        self._owner.forget(self)
        self.drop()
        self.handler.closed()
        return False

    def _hung_up(self) -> None:
        """While nothing was read. What the kernel holds is bounded, and nothing comes after it."""
        self._unwatch = None
        while self._stream is not None and self._receive():
            pass

    def close(self) -> None:
        """As soon as what was sent is on its way."""
        self.closing = True
        if self._stream is None:
            if not self._early:
                self.drop()
            return
        self._stop_reading()
        if not self._early:
            self._part()

    def _part(self) -> None:
        """Nothing more is sent. A peer that is sending must not meet a closed socket: no other transport makes that an error."""
        stream, self._stream = self._stream, None
        if stream is not None:
            self._loop.remove_reader(stream)
            self._loop.remove_writer(stream)
            self._owner.parting.add(stream)
        self._owner.gone(self)

    def _stop_reading(self) -> None:
        assert self._stream is not None
        self._loop.remove_reader(self._stream)
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def drop(self) -> None:
        """At once."""
        self.closing = True
        if self.give_up is not None:
            self.give_up()
            self.give_up = None
        if self._stream is not None:
            self._stop_reading()
            self._loop.remove_writer(self._stream)
            self._stream.close()
            self._stream = None
        self._owner.gone(self)


class Parting:
    """Sockets that are read, and nothing done with it, until the peer hangs up too or has had its time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._streams: dict[socket.socket, asyncio.TimerHandle] = {}

    def add(self, stream: socket.socket) -> None:
        try:
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            stream.close()
            return
        self._streams[stream] = self._loop.call_later(PARTING, self._end, stream)
        self._loop.add_reader(stream, self._drain, stream)

    def _drain(self, stream: socket.socket) -> None:
        try:
            if stream.recv(READ):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self._end(stream)

    def _end(self, stream: socket.socket) -> None:
        self._streams.pop(stream).cancel()
        self._loop.remove_reader(stream)
        stream.close()

    def close(self) -> None:
        for stream in list(self._streams):
            self._end(stream)


class VchanSocket:
    """The channels of `Port`, each a socket in that folder. `end` when done."""

    def __init__(self, folder: str) -> None:
        self.held = UNBOUNDED
        self.dialer = Dialer(folder)
        self.parting = Parting()
        self._channels: dict[int, _Channel] = {}
        self._last = 0
        self._lingering: set[_Channel] = set()       # closed, with bytes that still have to go
        self._flushed: list[asyncio.Future[None]] = []

    def open(self, address: Address, handler: Handler) -> int:
        """See Port. If no server comes, the handler hears `closed`."""
        channel = _Channel(self, handler)

        def failed() -> None:
            channel.give_up = None
            channel.drop()
            if self.forget(channel):
                handler.closed()

        channel.give_up = self.dialer.dial(address, channel.connected, failed)
        return self._add(channel)

    def listen(self, address: Address, accept: Callable[[int], Handler]) -> None:
        """See Port. Raises OSError."""
        def connected(stream: socket.socket) -> None:
            channel = _Channel(self, _NOBODY)
            channel.handler = accept(self._add(channel))
            channel.connected(stream)            # who accepts may have closed it already

        self.dialer.listen(address, connected)

    def unlisten(self, address: Address) -> None:
        self.dialer.unlisten(address)

    def send(self, channel: int, data: bytes | memoryview) -> int:
        """See Port. A closed channel swallows everything."""
        found = self._channels.get(channel)
        return len(data) if found is None else found.send(data)

    def consumed(self, channel: int, count: int) -> None:
        if channel in self._channels:
            self._channels[channel].consumed(count)

    def close(self, channel: int) -> None:
        found = self._channels.pop(channel, None)
        if found is not None:
            found.handler = _NOBODY
            self._lingering.add(found)
            found.close()

    async def flushed(self) -> None:
        """Until what was sent on closed channels is on its way, or nobody has come for it."""
        while self._lingering:
            change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._flushed.append(change)
            await change

    def gone(self, channel: _Channel) -> None:
        """Nothing of it waits to be sent."""
        self._lingering.discard(channel)
        for change in self._flushed:
            change.set_result(None)
        self._flushed.clear()

    def end(self, _reason: str = "") -> None:
        """Give every channel up; their handlers hear `closed`."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            channel.drop()
        self.parting.close()
        self.dialer.close()
        for channel in channels:
            channel.handler.closed()

    def forget(self, channel: _Channel) -> bool:
        """False if it was nobody's already."""
        return self._channels.pop(channel.number, None) is not None

    def _add(self, channel: _Channel) -> int:
        self._last += 1
        channel.number = self._last
        self._channels[channel.number] = channel
        return channel.number


class GivenVchan(VchanSocket):
    """One channel whose socket is there already: it came with a request. `open` takes it, whatever the address."""

    def __init__(self, stream: socket.socket) -> None:
        super().__init__("/")
        self._given = stream

    def open(self, address: Address, handler: Handler) -> int:
        channel = _Channel(self, handler)
        number = self._add(channel)
        channel.connected(tuned(self._given))
        return number


class _Nobody:
    """Handler of a channel that nobody uses any more."""

    def data(self, untrusted: bytes) -> None: ...
    def writable(self) -> None: ...
    def closed(self) -> None: ...


_NOBODY = _Nobody()
