"""Daemons as other processes see them: starting one that outlives whoever started it, and finding the one behind a socket."""
from __future__ import annotations

import os
import signal
import socket
import struct

from cloison.runtime.unix import connect

FIRST = 3                # descriptors from here on are nobody's business but their owner's
_AS_USUAL = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGCHLD)


def inherited() -> list[int]:
    """Open descriptors beside the three standard ones."""
    return [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd >= FIRST]


def spawn(command: list[str], log: str) -> int:
    """Start it in a session of its own, so that no terminal ends it; its output goes to the log. The process id. Raises OSError.

    It keeps nothing of whoever caused that: a descriptor may be a lock or the end of a pipe that somebody waits for, and a signal
    that a script ignores must still end it.
    """
    append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    return os.posix_spawn(
        command[0], command, os.environ, setsid=True, setsigdef=_AS_USUAL, setsigmask=(),
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, log, append, 0o600),
            (os.POSIX_SPAWN_DUP2, 1, 2),
            *((os.POSIX_SPAWN_CLOSE, fd) for fd in inherited()),
        ],
    )


def listener(path: str) -> tuple[int, int] | None:
    """The process of this user that listens on the socket: its id, and a descriptor of it for the caller to close."""
    try:
        with connect(path, own=True) as sock:
            credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            pid: int = struct.unpack("3i", credentials)[0]
            return pid, os.pidfd_open(pid)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError, ProcessLookupError):
        return None
