"""Changes in folders and files, as something to wait on: `fileno` is readable when there is news. What changed, the caller
looks up.

The standard library has no inotify, so two functions of the C library are called by ctypes. Only who must wait imports this.
"""
from __future__ import annotations

import contextlib
import ctypes
import os
import select

CREATE, MOVED_TO, MOVED_FROM, DELETE, CLOSE_WRITE = 0x100, 0x80, 0x40, 0x200, 0x8
ATTRIB, DELETE_SELF, MOVE_SELF = 0x4, 0x400, 0x800
_READ = 1 << 16


class Watch:
    """`mask`: which of the constants above. Close it. Raises OSError."""

    def __init__(self, path: str, mask: int) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            self.add(path, mask)
        except OSError:
            os.close(self._fd)
            raise

    def add(self, path: str, mask: int) -> None:
        """Watch this too; once more for what is watched already changes nothing. Raises OSError."""
        _checked(self._libc.inotify_add_watch(self._fd, os.fsencode(path), mask))

    def fileno(self) -> int:
        return self._fd

    def clear(self) -> bool:
        """Forget the news so far; whether there was any."""
        news = False
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ):
                news = True
        return news

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def wait_for(path: str, *ends: int) -> bool:
    """Wait, blocking, until something of that name is in its folder; False when one of `ends` is readable before (a process's
    descriptor: it has ended).
    """
    watch = Watch(os.path.dirname(path), CREATE | MOVED_TO)
    try:
        poll = select.poll()
        for fd in (watch.fileno(), *ends):
            poll.register(fd, select.POLLIN)
        while not os.path.lexists(path):
            if any(fd in ends for fd, _ in poll.poll()):
                return False
            watch.clear()
        return True
    finally:
        watch.close()
