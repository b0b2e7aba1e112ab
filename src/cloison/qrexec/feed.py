"""What a caller sends on its way to a service: in order, and kept while the service takes no more or isn't there yet."""
from __future__ import annotations

import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Callable


class Feed:
    """`on_drained`: all that was put has left; more may come. `on_end`: the last byte has left, or the service reads no more.

    After its end everything is dropped, as if the service had read it.
    """

    def __init__(self, on_drained: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._on_drained, self._on_end = on_drained, on_end
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[memoryview] = deque()
        self._stream: socket.socket | None = None
        self._attached = self._writing = False
        self.ended = False                   # no more goes to the service

    @property
    def empty(self) -> bool:
        return not self._waiting

    def put(self, data: bytes) -> None:
        """Nothing of it goes before `write`. Empty data are the end."""
        self._waiting.append(memoryview(data))

    def put_first(self, data: bytes) -> None:
        """Before all that waits."""
        self._waiting.appendleft(memoryview(data))

    def take(self) -> bytes:
        """All that waits; it waits no longer."""
        data = b"".join(self._waiting)
        self._waiting.clear()
        return data

    def attach(self, stream: socket.socket) -> None:
        """The service is there. The socket, which doesn't block, stays the caller's to close, after `close`."""
        self._stream, self._attached = stream, True

    def write(self) -> None:
        """As much as the service takes now; the rest when it takes more."""
        if not self._attached:
            return
        while self._waiting:
            chunk = self._waiting[0]
            if not len(chunk):
                self._waiting.popleft()
                self.end()
            elif self._stream is None:
                self._waiting.popleft()
            elif not self._send(self._stream, chunk):
                return
        self._on_drained()

    def _send(self, stream: socket.socket, chunk: memoryview) -> bool:
        """False: the service takes no more now."""
        try:
            sent = stream.send(chunk)
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(stream, self._writable, stream)
            return False
        except OSError:
            self.end()
            return True
        if sent < len(chunk):
            self._waiting[0] = chunk[sent:]
        else:
            self._waiting.popleft()
        return True

    def _writable(self, stream: socket.socket) -> None:
        self._loop.remove_writer(stream)
        self._writing = False
        self.write()

    def end(self) -> None:
        """The service sees the end of its input."""
        self.ended = True
        self.close()
        self._on_end()

    def close(self) -> None:
        """The same, and nobody is told. Idempotent."""
        if self._stream is None:
            return
        if self._writing:
            self._loop.remove_writer(self._stream)
            self._writing = False
        with contextlib.suppress(OSError):
            self._stream.shutdown(socket.SHUT_WR)
        self._stream = None
