"""Whether any process has a file open, as the kernel itself counts: what a qube's QEMU can't deny.

A lock says only what its holders want it to say: a QEMU that a guest has taken over lets go of it and writes on. So before a
volume is started, committed or removed its image is asked instead. The kernel grants a *write lease* to the only one who has a
file open, and to nobody else; it counts descriptors, mappings and descriptors on their way through a socket, of every user and
in every namespace. It doesn't count a descriptor made with O_PATH, which the box around QEMU refuses (hypervisor/seccomp.py).

A file system without leases (some network ones) is searched for by /proc instead, which shows the processes of this user.
"""
from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time

_PAUSE = 0.02           # s between two looks, for want of an event: nothing tells when a last descriptor of others is gone


def is_open(path: str) -> bool:
    """Whether anybody has this file open; False for none of that name. Raises OSError when that can't be found out."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except BlockingIOError:             # somebody else is asking just now
        return True
    try:
        if lease(fd):
            return False
        return bool(who(path)) if _without_leases(fd, path) else True
    finally:
        os.close(fd)


def closed_within(path: str, seconds: float) -> bool:
    """Whether nobody has it open, now or before the time is up: files of a killed process are closed a moment later."""
    deadline = time.monotonic() + seconds
    while is_open(path):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_PAUSE)
    return True


def lease(fd: int) -> bool:
    """Take a write lease, which ends with the descriptor: True when no other one of that file is open anywhere.

    Should somebody open the file meanwhile, the signal that says so is one that does nothing.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EINVAL, errno.ENOLCK, errno.EACCES, errno.EOPNOTSUPP):
            return False
        raise
    return True


def _without_leases(fd: int, path: str) -> bool:
    """Whether the file system gives leases to nobody: a file that nobody else can know of shows it."""
    try:
        new = os.open(os.path.dirname(path) or ".", os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError:                     # no way to tell, so the file counts as open
        return False
    try:
        return os.fstat(new).st_dev == os.fstat(fd).st_dev and not lease(new)
    finally:
        os.close(new)


def who(path: str) -> list[int]:
    """Processes that are seen to have the file open, this one excepted: for words, and where nothing better is to be had."""
    wanted = os.stat(path)
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            with contextlib.suppress(OSError):      # gone, or another user's
                if any(_is_same(f"/proc/{entry}/fd/{fd}", wanted) for fd in os.listdir(f"/proc/{entry}/fd")):
                    found.append(int(entry))
    return sorted(found)


def end(pid: int, path: str) -> None:
    """Kill the process, if it has the file open now: what is looked at is what is killed."""
    with contextlib.suppress(OSError):                  # it is gone, or another user's
        process = os.pidfd_open(pid)
        try:
            wanted = os.stat(path)
            if any(_is_same(f"/proc/{pid}/fd/{fd}", wanted) for fd in os.listdir(f"/proc/{pid}/fd")):
                signal.pidfd_send_signal(process, signal.SIGKILL)
        finally:
            os.close(process)


def _is_same(link: str, wanted: os.stat_result) -> bool:
    with contextlib.suppress(OSError):              # closed meanwhile
        return os.path.samestat(os.stat(link), wanted)
    return False
