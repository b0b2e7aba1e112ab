"""Bytes between one multiplexer channel and one stream socket, unread, with back-pressure both ways."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from cloison.runtime.hangup import watch_hangup
from cloison.runtime.held import Backlog
from cloison.runtime.port import Channels

READ = 1 << 16
FEW = 1 << 12             # read at once where much is held already


class Relay:
    """A Handler. It owns the socket; it ends when either side does, after handing on what that side had sent.

    Channel (`bind`) and socket (`attach`) may come later, in any order; what one of them brings waits for the other, at most
    its credit, and all that waits in relays of one port is bounded by its account (`held.py`): who holds the most is ended.

    Only a stream that hangs up while the channel takes no more ends at once: else a program that never reads its input would
    hold the channel for a caller that is gone.
    """

    def __init__(self, port: Channels, channel: int | None, stream: socket.socket | None, on_end: Callable[[], None]) -> None:
        self.channel = channel
        self._port, self._on_end = port, on_end
        self._stream: socket.socket | None = None
        self._loop = asyncio.get_running_loop()
        self._to_stream = Backlog()
        self._to_channel = memoryview(b"")
        self._share = port.held.share(self.end)
        self._unconsumed = 0
        self._writing = False
        self._peer_closed = False
        self._ended = False
        self._unwatch: Callable[[], None] | None = None    # set while the channel takes no more
        if stream is not None:
            self.attach(stream)

    def attach(self, stream: socket.socket) -> None:
        """The socket is there. After the end it is only closed."""
        if self._ended:
            stream.close()
            return
        stream.setblocking(False)
        self._stream = stream
        self._start()

    def bind(self, channel: int) -> Relay:
        """The channel is there; this is its handler."""
        self.channel = channel
        self._start()
        return self

    def _start(self) -> None:
        if self._stream is not None and self.channel is not None:
            self._loop.add_reader(self._stream, self._readable)
            if self._to_stream or self._peer_closed:
                self._write()

    def end(self) -> None:
        """Give it up, both ways. Idempotent."""
        self._end(tell_channel=True)

    def data(self, untrusted: bytes) -> None:
        if self._ended:
            return
        self._unconsumed += len(untrusted)
        if self._writing or self._to_stream or self._stream is None:
            self._keep(untrusted)
            return
        sent = self._sent(self._stream, memoryview(untrusted))
        if sent == len(untrusted):
            self._consumed()
        elif not self._ended:
            self._keep(memoryview(untrusted)[sent:])
            self._want_write(not self._ended)

    def _keep(self, untrusted: bytes | memoryview) -> None:
        self._to_stream.put(untrusted)
        self._count()

    def _count(self) -> None:
        self._share.now(len(self._to_stream) + len(self._to_channel))

    def _sent(self, stream: socket.socket, data: memoryview) -> int:
        """How much it took. Ends everything if it will never take more."""
        try:
            return stream.send(data)
        except BlockingIOError:
            return 0
        except OSError:
            self._end(tell_channel=True)
            return 0

    def _write(self) -> None:
        if self._stream is None or self.channel is None:
            return
        while self._to_stream:
            sent = self._sent(self._stream, self._to_stream.first())
            self._to_stream.left(sent)
            if not sent:                 # perhaps for good: then all is over already
                self._count()
                self._want_write(True)
                return
        self._count()
        self._want_write(False)
        if self._peer_closed:
            self._end(tell_channel=False)
        else:
            self._consumed()

    def _consumed(self) -> None:
        if self.channel is not None:
            self._port.consumed(self.channel, self._unconsumed)
            self._unconsumed = 0

    def _want_write(self, on: bool) -> None:
        if on != self._writing and self._stream is not None:
            self._writing = on
            if on:
                self._loop.add_writer(self._stream, self._write)
            else:
                self._loop.remove_writer(self._stream)

    def _readable(self) -> None:
        assert self._stream is not None and self.channel is not None
        try:
            data = self._stream.recv(self._port.held.roomy(READ, FEW))
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(tell_channel=True)
            return
        sent = self._port.send(self.channel, data)
        if sent < len(data):
            self._to_channel = memoryview(bytes(data[sent:]))
            self._loop.remove_reader(self._stream)
            self._unwatch = watch_hangup(self._stream, self._hung_up)
            self._count()

    def writable(self) -> None:
        if self._stream is None or self.channel is None:
            return
        if self._to_channel:
            self._to_channel = self._to_channel[self._port.send(self.channel, self._to_channel):]
            self._count()
        if not self._to_channel:
            self._stop_watch()
            self._loop.add_reader(self._stream, self._readable)

    def _hung_up(self) -> None:
        self._end(tell_channel=True)

    def _stop_watch(self) -> None:
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None

    def closed(self) -> None:
        """The other side sends no more: what it sent still goes to the socket."""
        self._peer_closed = True
        if not self._to_stream:
            self._end(tell_channel=False)

    def _end(self, *, tell_channel: bool) -> None:
        if self._ended:
            return
        self._ended = True
        self._to_stream.clear()
        self._to_channel = memoryview(b"")
        self._count()
        self._stop_watch()
        if self._stream is not None:
            self._loop.remove_reader(self._stream)
            self._loop.remove_writer(self._stream)
            self._stream.close()
            self._stream = None
        if tell_channel and self.channel is not None:
            self._port.close(self.channel)
        self._on_end()
