"""A little disk space that is kept back, so that a full disk can still be tidied up: the store written, qubes ended and removed.

    data/reserve            on the file system of the data folder
    DIR/.reserve            of a pool that is on another one

Given up (unlinked) when something small that must not fail has found no space, and made again when there is plenty.
"""
from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import TypeVar

from cloison.wire.warden import RESUME

T = TypeVar("T")
log = logging.getLogger(__name__)
SIZE = 32 << 20             # bytes; of a small file system a twentieth
SHORT = 1 << 20             # bytes free, below which a failure is taken for the want of them


class Reserves:
    """Those of the data folder and of pools. Methods block for a moment, and raise nothing: a reserve is a help, not a promise."""

    def __init__(self, data: str) -> None:
        self._data = data
        self._pools: dict[str, int] = {}        # folders of pools that have one, and their file systems

    def keep(self, pools: Iterable[str] = ()) -> None:
        """Make those that are missing, one a file system, where there is space enough. `pools`: their folders."""
        seen = set[int]()
        for folder in (self._data, *pools):
            with contextlib.suppress(OSError):
                device = _device(folder)
                if device not in seen and device not in [theirs for other, theirs in self._pools.items() if other != folder]:
                    seen.add(device)
                    _make(self._path(folder))
                    if folder != self._data:
                        self._pools[folder] = device

    def spend(self, folder: str) -> bool:
        """Whether there is more space than before on the file system of that folder, which had next to none."""
        with contextlib.suppress(OSError):
            if not is_short(folder):
                return False
            device = _device(folder)
            for place in (self._data, *self._pools):
                path = self._path(place)
                if os.path.exists(path) and _device(path) == device:
                    os.unlink(path)
                    log.error("the disk of %s is full: the space that was kept back is used now", folder)
                    return True
        return False

    def drop(self, pool: str) -> None:
        """The pool in that folder is no more."""
        if pool in self._pools:
            del self._pools[pool]
            with contextlib.suppress(OSError):
                os.unlink(self._path(pool))

    def helps(self, folder: str, do: Callable[[], T], failures: type[Exception] | tuple[type[Exception], ...]) -> T:
        """What `do` returns, with one more try if it failed because the disk is full. `do` leaves nothing behind when it fails."""
        try:
            return do()
        except failures:
            if not self.spend(folder):
                raise
        return do()

    def _path(self, folder: str) -> str:
        return os.path.join(folder, "reserve" if folder == self._data else ".reserve")


def is_short(folder: str) -> bool:
    """Whether next to nothing is free there."""
    try:
        return _space(folder)[1] < SHORT
    except OSError:
        return False


def _space(folder: str) -> tuple[int, int]:
    """Bytes of its file system, and free ones."""
    found = os.statvfs(folder)
    return found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize


def _device(path: str) -> int:
    return os.stat(path).st_dev


def _make(path: str) -> None:
    """Raises OSError. Nothing is done where it would take what others need."""
    if os.path.exists(path):
        return
    whole, free = _space(os.path.dirname(path))
    size = min(SIZE, whole // 20)
    if free < size + min(RESUME, whole // 4):
        return
    temporary = f"{path}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        os.posix_fallocate(fd, 0, size)
        os.rename(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    finally:
        os.close(fd)
