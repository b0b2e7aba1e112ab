"""Reading a whole stream whose writer may send without end, or nothing at all."""
from __future__ import annotations

import os
import select
import time

from cloison.errors import PeerError

_CHUNK = 1 << 16


def read_all(fd: int, limit: int, seconds: float) -> bytes:
    """To its end, at most `limit` bytes and one. Raises PeerError when that has not come in so many seconds, OSError."""
    end = time.monotonic() + seconds
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    untrusted = bytearray()
    while len(untrusted) <= limit:
        if not poll.poll(max(0.0, end - time.monotonic()) * 1000):
            raise PeerError(f"the input did not end within {seconds:g} s")
        piece = os.read(fd, min(_CHUNK, limit + 1 - len(untrusted)))
        if not piece:
            break
        untrusted += piece
    return bytes(untrusted)
