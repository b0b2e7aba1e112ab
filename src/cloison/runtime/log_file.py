"""A log of bounded size that many processes append to, each by itself (docs/decisions/0045).

A record is one write to the end of the file, so records never mix. A file that has grown to its limit is renamed to `.1`, which
is lost then, by whoever gets its lock; the others notice that the name leads elsewhere. So it needs nobody who runs all the time,
and a kill between any two lines leaves a file that the next record goes on with. Nothing here may fail what is told of.
"""
from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Container

MAX_SIZE = 2 << 20        # bytes, after which the file becomes `.1`
STDIO = (1, 2)


class LogFile:
    """`write` never raises and never waits. `stdio`: what the process writes to its standard output and error goes there, too."""

    def __init__(self, path: str, max_size: int = MAX_SIZE, *, stdio: bool = False) -> None:
        self.path, self._max_size, self._stdio = path, max_size, stdio
        self._fd = self._inode = -1

    def write(self, record: bytes) -> OSError | None:
        """Why it could not be written, if it couldn't."""
        try:
            self._follow()
            if os.fstat(self._fd).st_size >= self._max_size:
                self._rotate()
                self._follow()
            os.write(self._fd, record)
        except OSError as error:
            return error
        return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = self._inode = -1

    def _follow(self) -> None:
        """Have the file open that bears the name now."""
        with contextlib.suppress(FileNotFoundError):
            if self._fd >= 0 and os.stat(self.path).st_ino == self._inode:
                return
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        self.close()
        self._fd, self._inode = fd, os.fstat(fd).st_ino
        for standard in STDIO if self._stdio else ():
            os.dup2(fd, standard)

    def _rotate(self) -> None:
        """Whoever comes second finds the lock taken or the name gone, and leaves it."""
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.stat(self.path).st_ino == self._inode:
                os.rename(self.path, f"{self.path}.1")


def sweep(folder: str, names: Container[str]) -> None:
    """Remove the logs of whatever bears none of those names."""
    for each in os.listdir(folder) if os.path.isdir(folder) else ():
        name = each.removesuffix(".1").removesuffix(".log")
        if name not in names:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(folder, each))


def remove(path: str) -> None:
    """The log and its `.1`. Idempotent; nobody may be writing it."""
    for name in (path, f"{path}.1"):
        with contextlib.suppress(OSError):
            os.unlink(name)
