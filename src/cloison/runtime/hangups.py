"""Notice which of many half-closed peers are gone for good: one epoll for all of them, watched by the event loop.

`hangup.watch_hangup` takes a descriptor a watch; with a thousand listeners to events that is too many.
"""
from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

_AT_ONCE = 256


class Hangups:
    """Watches by descriptor number. A watch must be ended before its descriptor is closed."""

    def __init__(self) -> None:
        self._watched: dict[int, Callable[[], None]] = {}
        self._epoll = select.epoll()
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._epoll.fileno(), self._seen)

    def __len__(self) -> int:
        return len(self._watched)

    def watch(self, fd: int, on_hangup: Callable[[], None]) -> None:
        """Call `on_hangup` once when the peer of this socket has closed."""
        self._epoll.register(fd, 0)             # an empty mask reports EPOLLHUP and nothing else
        self._watched[fd] = on_hangup

    def end(self, fd: int) -> None:
        """Idempotent."""
        if self._watched.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self) -> None:
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._watched.clear()

    def _seen(self) -> None:
        for fd, _ in self._epoll.poll(0, _AT_ONCE):
            on_hangup = self._watched.get(fd)
            if on_hangup is not None:           # else one of those before has ended this watch
                self.end(fd)
                on_hangup()
