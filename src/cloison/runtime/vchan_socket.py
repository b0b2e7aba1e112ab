"""vchans as Unix sockets, one each: the transport of tests and of other implementations (reference/qrexec.md 2.2).

`Dialer` makes the connections, `VchanSocket` puts the interface of `runtime/port.py` on them. What differs from the reference's
library: a listener is closed and its path removed right after it was accepted on, so that nobody can meet a former user of the
port; a path appears only when its listener listens; a client sleeps until the folder changes instead of asking again and again.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
from collections.abc import Callable, Mapping

from cloison.runtime import unix
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.inotify import CREATE, MOVED_TO, Watch
from cloison.runtime.port import Handler
from cloison.wire.mux import WINDOW, Address

FOLDER = "/var/run/vchan"
READ = 1 << 17
MAX_EARLY = WINDOW             # bytes that may be sent before the peer is there
BUFFER = 1 << 18               # bytes asked of the kernel for each direction
REFUSED_AGAIN = 0.001          # s: a foreign listener is bound, but does not listen yet; nothing tells when it does
PARTING = 5.0                  # s that a peer has for hanging up after us
PATIENCE = 120.0               # s that one end of a data channel waits for the other, as the reference's programs do

Connected = Callable[[socket.socket], None]


def folder(environ: Mapping[str, str]) -> str:
    return environ.get("VCHAN_SOCKET_DIR") or FOLDER


def file_name(address: Address) -> str:
    return f"vchan.{address.server}.{address.client}.{address.port}.sock"


def _tuned(stream: socket.socket) -> socket.socket:
    stream.setblocking(False)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
    return stream


class Dialer:
    """Connects to, and listens at, addresses in one folder. Nothing in it blocks. Raises OSError if there is no such folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        # Paths go through this descriptor: a socket's address takes 107 bytes only.
        self._fd = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[Address, socket.socket] = {}
        self._waiting: dict[object, Callable[[], None]] = {}     # clients whose server is not there yet
        self._watch: Watch | None = None

    def close(self) -> None:
        """Gives up whatever waits; nobody is told."""
        for address in list(self._listeners):
            self.unlisten(address)
        self._waiting.clear()
        self._stop_watch()
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def listen(self, address: Address, connected: Connected, failed: Callable[[], None] | None = None) -> None:
        """`connected` is called once, with the first client. Replaces a former listener there. Raises OSError.

        With `failed` the wait has an end, of which that tells.
        """
        self.unlisten(address)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        temporary = self._path(f".{file_name(address)}.{secrets.token_hex(4)}")
        try:
            with unix.address(temporary) as there:
                listener.bind(there)
            listener.listen(1)
            os.rename(temporary, self._path(file_name(address)))
        except OSError:
            listener.close()
            raise
        self._listeners[address] = listener
        self._loop.add_reader(listener, self._accept, address, listener, connected)
        if failed is not None:
            self._loop.call_later(PATIENCE, self._expire, address, listener, failed)

    def _expire(self, address: Address, listener: socket.socket, failed: Callable[[], None]) -> None:
        if self._listeners.get(address) is listener:
            self.unlisten(address)
            failed()

    def unlisten(self, address: Address) -> None:
        """Idempotent."""
        listener = self._listeners.pop(address, None)
        if listener is not None:
            self._loop.remove_reader(listener)
            listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path(file_name(address)))

    def _accept(self, address: Address, listener: socket.socket, connected: Connected) -> None:
        try:
            stream, _ = listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        self.unlisten(address)
        connected(_tuned(stream))

    def dial(self, address: Address, connected: Connected, failed: Callable[[], None]) -> Callable[[], None]:
        """Connect, now or when a server is there; one of both is called, later. Returns what gives up, and tells nobody."""
        key = object()
        deadline = self._loop.call_later(PATIENCE, lambda: give_up(tell=True))

        def give_up(*, tell: bool = False) -> None:
            deadline.cancel()
            if self._waiting.pop(key, None) is not None:
                self._maybe_stop_watch()
                if tell:
                    failed()

        def attempt() -> None:
            if key not in self._waiting:
                return
            stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            try:
                stream.setblocking(False)
                with unix.address(self._path(file_name(address))) as there:
                    stream.connect(there)
            except OSError as error:
                stream.close()
                self._retry(error, attempt, give_up)
                return
            give_up()
            connected(_tuned(stream))

        self._waiting[key] = attempt
        self._loop.call_soon(attempt)
        return give_up

    def _retry(self, error: OSError, attempt: Callable[[], None], give_up: Callable[..., None]) -> None:
        if isinstance(error, FileNotFoundError):
            if self._watch is None:
                self._watch = Watch(self._folder, CREATE | MOVED_TO)
                self._loop.add_reader(self._watch, self._changed)
                self._loop.call_soon(attempt)        # it may have come before the watch
        elif isinstance(error, ConnectionRefusedError | BlockingIOError):   # it does not listen yet, or has a client to accept
            self._loop.call_later(REFUSED_AGAIN, attempt)
        else:
            give_up(tell=True)

    def _changed(self) -> None:
        if self._watch is not None:
            self._watch.clear()
        for attempt in list(self._waiting.values()):
            attempt()

    def _maybe_stop_watch(self) -> None:
        if not self._waiting:
            self._stop_watch()

    def _stop_watch(self) -> None:
        if self._watch is not None:
            self._loop.remove_reader(self._watch)
            self._watch.close()
            self._watch = None

    def _path(self, name: str) -> str:
        return f"/proc/self/fd/{self._fd}/{name}"


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
            if not channel.closing:
                channel.connected(stream)
            else:
                stream.close()

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
        channel.connected(_tuned(self._given))
        return number


class _Nobody:
    """Handler of a channel that nobody uses any more."""

    def data(self, untrusted: bytes) -> None: ...
    def writable(self) -> None: ...
    def closed(self) -> None: ...


_NOBODY = _Nobody()
