"""Unix sockets: connecting however deep the folder lies, and who is at the other end."""
from __future__ import annotations

import os
import socket
import struct

_ADDRESS = 107                           # bytes of a path that fit a socket address
_CREDENTIALS = struct.Struct("3i")       # process, user, group


def is_same_user(stream: socket.socket) -> bool:
    """Whether the peer was this user when it connected."""
    credentials = stream.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return bool(_CREDENTIALS.unpack(credentials)[1] == os.geteuid())


def connect(path: str, *, blocking: bool = True) -> socket.socket:
    """A stream socket connected to that path. Raises OSError.

    Not `blocking`: also for good, and a listener whose backlog is full is BlockingIOError.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        sock.setblocking(blocking)
        if len(os.fsencode(path)) <= _ADDRESS:
            sock.connect(path)
        else:
            there = os.open(path, os.O_PATH | os.O_CLOEXEC)
            try:
                sock.connect(f"/proc/self/fd/{there}")
            finally:
                os.close(there)
    except BaseException:
        sock.close()
        raise
    return sock
