"""Finding the other end of a vchan-socket: one path per address in one folder (reference/qrexec.md 2.2).

What differs from the reference's library: a listener is closed and its path removed right after it was accepted on, so that
nobody can meet a former user of the port; a path appears only when its listener listens; a client sleeps until the folder
changes instead of asking again and again.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from cloison.runtime import unix
from cloison.runtime.inotify import CREATE, MOVED_TO, Watch
from cloison.wire.mux import Address

BUFFER = 1 << 18               # bytes asked of the kernel for each direction
REFUSED_AGAIN = 0.001          # s: a foreign listener is bound, but does not listen yet; nothing tells when it does
PATIENCE = 120.0               # s that one end of a data channel waits for the other, as the reference's programs do

Connected = Callable[[socket.socket], None]


def file_name(address: Address) -> str:
    return f"vchan.{address.server}.{address.client}.{address.port}.sock"


def tuned(stream: socket.socket) -> socket.socket:
    """Not blocking, with room for a chunk or two."""
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
        listener = unix.listen(self._path(file_name(address)), 1)
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
        connected(tuned(stream))

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
            connected(tuned(stream))

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
