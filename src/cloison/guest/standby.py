"""Two programs that could be the agent: one is, the other stands by with everything loaded and takes over when that one ends.

Starting Python and loading the agent takes seconds under emulation; a program that waits for a lock takes over at once, however
the other has ended, since the kernel gives the lock back. systemd starts the dead one anew, which then stands by.
"""
from __future__ import annotations

import fcntl
import os

LOCK = "/run/cloison-agent.lock"
IN_TURN, STANDING_BY = -10, 19           # nice values: who loads to stand by is in nobody's way

_lock: list[int] = []                    # its descriptor, kept open until the end; no child inherits it


def begin(lock: str = LOCK) -> None:
    """Before anything is loaded. Raises OSError."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    _lock[:] = [fd]
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.setpriority(os.PRIO_PROCESS, 0, STANDING_BY)


def take_turn() -> None:
    """When all is loaded. Returns when this process is the agent, which it is for as long as it lives."""
    _ready()
    fcntl.flock(_lock[0], fcntl.LOCK_EX)    # at once for who has it
    if os.getpriority(os.PRIO_PROCESS, 0) == STANDING_BY:
        os.setpriority(os.PRIO_PROCESS, 0, IN_TURN)


def _ready() -> None:
    """Tell systemd, if it wants to know, that nothing is left to be loaded."""
    path = os.environ.pop("NOTIFY_SOCKET", "")
    if path:
        import socket

        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as systemd:
            systemd.sendto(b"READY=1", "\0" + path[1:] if path.startswith("@") else path)
