"""Connecting to a Unix socket from an event loop.

`loop.sock_connect` takes a full backlog for a connection under way, which a Unix socket never has: it would hand out a socket
that isn't connected. Nothing tells when a backlog has room again, so it is asked for again.
"""
from __future__ import annotations

import asyncio
import socket

from cloison.runtime import unix

BUSY_AGAIN = 0.005                       # s


async def connect(path: str) -> socket.socket:
    """A stream socket connected to that path, not blocking. Raises OSError."""
    while True:
        try:
            return unix.connect(path, blocking=False)
        except BlockingIOError:
            await asyncio.sleep(BUSY_AGAIN)
