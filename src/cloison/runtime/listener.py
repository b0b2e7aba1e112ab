"""A Unix socket that listens in this thread's event loop: who comes, and an end that takes the path along."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from cloison.runtime import unix


class Listener:
    """Listens as `unix.listen` does, until `close`. `on_caller` gets each caller's stream, not blocking, to keep or close."""

    def __init__(self, path: str, backlog: int, on_caller: Callable[[socket.socket], object], mode: int = 0o600) -> None:
        self._path, self._on_caller = path, on_caller
        self._loop = asyncio.get_running_loop()
        self._socket = unix.listen(path, backlog, mode)
        self.resume()

    def pause(self) -> None:
        """Who comes waits in the backlog, and beyond it in `connect`, until `resume`. Idempotent, both."""
        self._loop.remove_reader(self._socket)

    def resume(self) -> None:
        self._loop.add_reader(self._socket, self._accept)

    def close(self) -> None:
        """Those who came are the owner's."""
        self.pause()
        self._socket.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)

    def _accept(self) -> None:
        try:
            stream, _ = self._socket.accept()
        except OSError:                  # gone again
            return
        stream.setblocking(False)
        self._on_caller(stream)
