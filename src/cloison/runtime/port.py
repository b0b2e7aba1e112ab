"""A multiplexer on a descriptor, in this thread's event loop: who handles which channel, and nothing that waits.

Both ends use it: the agent on its virtio port, the warden on the socket that QEMU holds the other end of. A peer that breaks
the protocol, or hangs up, ends the port: every handler hears `closed`, then `on_end` is called once with the reason.
"""
from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable
from typing import Protocol

from cloison.errors import PeerError
from cloison.runtime.held import UNBOUNDED, Backlog, Held
from cloison.wire.mux import Address, Closed, Control, Data, Event, Mux, Opened, Writable

READ = 1 << 17
# A guest's virtio port gives one buffer of its queue, a page, to each read; a vector of pages gets all that wait by one call.
_PAGE = 4096
_read = memoryview(bytearray(READ))      # one thread, and no callback waits
_pages = [_read[start:start + _PAGE] for start in range(0, READ, _PAGE)]


class Handler(Protocol):
    """One channel's user. After `closed` it hears nothing more."""

    def data(self, untrusted: bytes) -> None: ...
    def writable(self) -> None: ...
    def closed(self) -> None: ...


class Channels(Protocol):
    """What carries vchans: a `Port`, or a `VchanSocket`. A channel is a number here; one end is told apart by who opened it."""

    held: Held                           # what its handlers keep of the peer's bytes, and for it

    def open(self, address: Address, handler: Handler) -> int: ...
    def listen(self, address: Address, accept: Callable[[int], Handler]) -> None: ...
    def unlisten(self, address: Address) -> None: ...
    def send(self, channel: int, data: bytes | memoryview) -> int: ...
    def consumed(self, channel: int, count: int) -> None: ...
    def close(self, channel: int) -> None: ...


class Port:
    """`side` is mux.HOST or mux.GUEST; `on_open` gives the handler of a channel the peer opens, or None to refuse it."""

    def __init__(
        self, fd: int, side: int, *, on_control: Callable[[bytes], None],
        on_open: Callable[[int, Address], Handler | None], on_end: Callable[[str], None], held: Held = UNBOUNDED,
    ) -> None:
        self.held = held
        self._fd = fd
        self._mux = Mux(side)
        self._handlers: dict[int, Handler] = {}
        self._listeners: dict[Address, Callable[[int], Handler]] = {}
        self._on_control, self._on_open, self._on_end = on_control, on_open, on_end
        self._unwritten = memoryview(b"")
        self._writing = False
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)

    def open(self, address: Address, handler: Handler) -> int:
        """Open a channel as vchan client. `send` on it may follow at once."""
        channel = self._mux.open(address)
        self._handlers[channel] = handler
        self.flush()
        return channel

    def listen(self, address: Address, accept: Callable[[int], Handler]) -> None:
        """As vchan server, for one client: `accept` gets the channel it opens and gives its handler. Replaces a former one."""
        self._listeners[address] = accept

    def unlisten(self, address: Address) -> None:
        """Idempotent."""
        self._listeners.pop(address, None)

    def send(self, channel: int, data: bytes | memoryview) -> int:
        """How much was taken; after less than all, the handler's `writable` says when to go on."""
        sent = self._mux.send(channel, data)
        self.flush()
        return sent

    def consumed(self, channel: int, count: int) -> None:
        """So many bytes of that channel have left this process."""
        self._mux.consumed(channel, count)
        self.flush()

    def close(self, channel: int) -> None:
        """Nothing more either way; the handler is forgotten, not told."""
        self._handlers.pop(channel, None)
        self._mux.close(channel)
        self.flush()

    def control(self, message: bytes) -> None:
        self._mux.control(message)
        self.flush()

    def end(self, reason: str) -> None:
        """Give the port up. Idempotent; the descriptor stays the caller's to close."""
        if self._ended:
            return
        self._ended = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)
        handlers = list(self._handlers.values())
        self._handlers.clear()
        for handler in handlers:
            handler.closed()
        self._on_end(reason)

    def flush(self) -> None:
        """Write what the descriptor takes now; the rest when it is writable."""
        if self._writing or self._ended:
            return
        while self._unwritten or self._mux.has_output:
            if not self._unwritten:
                self._unwritten = memoryview(self._mux.take_output())
            try:
                self._unwritten = self._unwritten[os.write(self._fd, self._unwritten):]
            except BlockingIOError:
                self._writing = True
                self._loop.add_writer(self._fd, self._writable_again)
                return
            except OSError as error:
                self.end(f"the port can't be written: {error.strerror}")
                return
        for event in self._mux.drained():
            self._dispatch(event)

    def _writable_again(self) -> None:
        self._loop.remove_writer(self._fd)
        self._writing = False
        self.flush()

    def _readable(self) -> None:
        try:
            size = os.readv(self._fd, _pages)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self.end("the other side hung up")
            return
        try:
            for event in self._mux.receive(bytes(_read[:size])):
                self._dispatch(event)
        except PeerError as error:
            self.end(f"the other side broke the protocol: {error}")
            return
        self.flush()

    def _dispatch(self, event: Event) -> None:
        if self._ended:
            return
        if isinstance(event, Data):
            if handler := self._handlers.get(event.channel):
                handler.data(event.untrusted)
        elif isinstance(event, Writable):
            if handler := self._handlers.get(event.channel):
                handler.writable()
        elif isinstance(event, Control):
            self._on_control(event.untrusted)
        elif isinstance(event, Opened):
            self._opened(event)
        elif isinstance(event, Closed):
            closed = self._handlers.pop(event.channel, None)
            self._mux.close(event.channel)
            if closed is not None:
                closed.closed()

    def _opened(self, event: Opened) -> None:
        accept = self._listeners.pop(event.address, None)
        handler = accept(event.channel) if accept is not None else self._on_open(event.channel, event.address)
        if handler is None:
            self._mux.close(event.channel)
        else:
            self._handlers[event.channel] = handler


class Outbox:
    """Messages for one channel, kept until the channel takes them; the user bounds what may wait, by `len`."""

    def __init__(self, port: Channels, channel: int) -> None:
        self._port, self.channel = port, channel
        self._waiting = Backlog()
        self._put = self._sent = 0                       # bytes, since the beginning
        self._marks: deque[tuple[int, Callable[[], None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, message: bytes, then: Callable[[], None] | None = None) -> None:
        """`then` is called when the channel has taken this message: what it does comes after it for the peer, too."""
        self._waiting.put(message)
        self._put += len(message)
        if then is not None:
            self._marks.append((self._put, then))
        self.flush()

    def flush(self) -> bool:
        """True when nothing waits any more."""
        while self._waiting:
            first = bytes(self._waiting.first())         # a copy: what is called from `send` may put more
            sent = self._port.send(self.channel, first)
            self._waiting.left(sent)
            self._sent += sent
            if sent < len(first):
                break
        while self._marks and self._marks[0][0] <= self._sent:
            self._marks.popleft()[1]()
        return not self._waiting
