"""Bytes between one multiplexer channel and one stream socket, unread, with back-pressure both ways."""
from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from cloison.runtime.hangup import watch_hangup
from cloison.runtime.port import Channels

READ = 1 << 16


class Relay:
    """A Handler. It owns the socket; it ends when either side does, after handing on what that side had sent.

    Only a stream that hangs up while the channel takes no more ends at once: else a program that never reads its input would
    hold the channel for a caller that is gone.
    """

    def __init__(self, port: Channels, channel: int, stream: socket.socket, on_end: Callable[[], None]) -> None:
        stream.setblocking(False)
        self._port, self._channel, self._stream, self._on_end = port, channel, stream, on_end
        self._loop = asyncio.get_running_loop()
        self._to_stream: list[memoryview] = []
        self._to_channel = memoryview(b"")
        self._unconsumed = 0
        self._writing = False
        self._peer_closed = False
        self._ended = False
        self._unwatch: Callable[[], None] | None = None    # set while the channel takes no more
        self._loop.add_reader(stream, self._readable)

    def data(self, untrusted: bytes) -> None:
        self._unconsumed += len(untrusted)
        self._to_stream.append(memoryview(untrusted))
        if not self._writing:
            self._write()

    def _write(self) -> None:
        while self._to_stream:
            first = self._to_stream[0]
            try:
                sent = self._stream.send(first)
            except BlockingIOError:
                self._want_write(True)
                return
            except OSError:
                self._end(tell_channel=True)
                return
            if sent < len(first):
                self._to_stream[0] = first[sent:]
            else:
                self._to_stream.pop(0)
        self._want_write(False)
        if self._peer_closed:
            self._end(tell_channel=False)
            return
        self._port.consumed(self._channel, self._unconsumed)
        self._unconsumed = 0

    def _want_write(self, on: bool) -> None:
        if on != self._writing:
            self._writing = on
            if on:
                self._loop.add_writer(self._stream, self._write)
            else:
                self._loop.remove_writer(self._stream)

    def _readable(self) -> None:
        try:
            data = self._stream.recv(READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._end(tell_channel=True)
            return
        sent = self._port.send(self._channel, data)
        if sent < len(data):
            self._to_channel = memoryview(data)[sent:]
            self._loop.remove_reader(self._stream)
            self._unwatch = watch_hangup(self._stream, self._hung_up)

    def writable(self) -> None:
        if self._ended:
            return
        if self._to_channel:
            self._to_channel = self._to_channel[self._port.send(self._channel, self._to_channel):]
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
        self._stop_watch()
        self._loop.remove_reader(self._stream)
        self._loop.remove_writer(self._stream)
        self._stream.close()
        if tell_channel:
            self._port.close(self._channel)
        self._on_end()
