"""Notice that the process at the other end of a socket is gone, even after it has half-closed.

epoll reports a hang-up for a descriptor registered with an empty mask, and an epoll descriptor can itself be watched by the
event loop; nothing is read from the socket.
"""
from __future__ import annotations

import asyncio
import select
import socket
from collections.abc import Callable


def watch_hangup(stream: socket.socket, on_hangup: Callable[[], object]) -> Callable[[], None]:
    """Call `on_hangup` once when the peer has closed. Returns what ends the watch. The socket stays the caller's."""
    loop = asyncio.get_running_loop()
    watcher = select.epoll()
    watcher.register(stream.fileno(), 0)

    def stop() -> None:
        if not watcher.closed:
            loop.remove_reader(watcher.fileno())
            watcher.close()

    def hung_up() -> None:
        stop()
        on_hangup()

    loop.add_reader(watcher.fileno(), hung_up)
    return stop
