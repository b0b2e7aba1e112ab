"""Changes in one folder, as something to wait on: `fileno` is readable when there is news. What changed, the caller looks up.

The standard library has no inotify, so two functions of the C library are called by ctypes. Only who must wait imports this.
"""
from __future__ import annotations

import contextlib
import ctypes
import os

CREATE, MOVED_TO, MOVED_FROM, DELETE, CLOSE_WRITE = 0x100, 0x80, 0x40, 0x200, 0x8
_READ = 1 << 16


class Watch:
    """`mask`: which of the constants above. Close it. Raises OSError."""

    def __init__(self, folder: str, mask: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = _checked(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        try:
            _checked(libc.inotify_add_watch(self._fd, os.fsencode(folder), mask))
        except OSError:
            os.close(self._fd)
            raise

    def fileno(self) -> int:
        return self._fd

    def clear(self) -> None:
        """Forget the news so far."""
        with contextlib.suppress(BlockingIOError):
            while os.read(self._fd, _READ):
                pass

    def close(self) -> None:
        os.close(self._fd)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
