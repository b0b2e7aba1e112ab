"""What a caller sends on its way to a service: in order, and kept while the service takes no more or isn't there yet."""
from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

from cloison.runtime.held import Backlog


class Feed:
    """`on_drained`: all that was put has left; more may come. `on_end`: the last byte has left, or the service reads no more.

    After its end everything is dropped, as if the service had read it.
    """

    def __init__(self, on_drained: Callable[[], None], on_end: Callable[[], None]) -> None:
        self._on_drained, self._on_end = on_drained, on_end
        self._loop = asyncio.get_running_loop()
        self._waiting = Backlog()
        self._last = False                   # nothing comes after what waits
        self._stream: socket.socket | None = None
        self._attached = self._writing = False
        self.ended = False                   # no more goes to the service

    def __len__(self) -> int:
        """Bytes that wait."""
        return len(self._waiting)

    @property
    def empty(self) -> bool:
        return not self._waiting and not self._last

    def put(self, data: bytes) -> None:
        """Nothing of it goes before `write`. Empty data are the end: what comes after them is nobody's."""
        if not data:
            self._last = True
        elif not self._last and not self.ended:
            self._waiting.put(data)

    def put_first(self, data: bytes) -> None:
        """Before all that waits."""
        self._waiting.put_first(data)

    def take(self) -> bytes:
        """All that waits; it waits no longer."""
        self._last = False
        return self._waiting.take()

    def attach(self, stream: socket.socket) -> None:
        """The service is there. The socket, which doesn't block, stays the caller's to close, after `close`."""
        self._stream, self._attached = stream, True

    def write(self) -> None:
        """As much as the service takes now; the rest when it takes more."""
        if not self._attached:
            return
        while self._waiting and self._stream is not None:
            if not self._send(self._stream):
                return
        self._waiting.clear()                # if there is no stream, it has ended
        if self._last:
            self._last = False
            self.end()
        self._on_drained()

    def _send(self, stream: socket.socket) -> bool:
        """False: the service takes no more now."""
        try:
            self._waiting.left(stream.send(self._waiting.first()))
        except BlockingIOError:
            if not self._writing:
                self._writing = True
                self._loop.add_writer(stream, self._writable, stream)
            return False
        except OSError:
            self.end()
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
