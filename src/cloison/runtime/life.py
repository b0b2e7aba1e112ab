"""Whether any process of a qube still lives: a lock that all of them hold and the kernel lets go when the last one is gone.

The warden takes it and QEMU inherits its descriptor (a lock made by flock belongs to the open file, not to a process). So even
after a kill -9 of the warden one can wait, without polling and without process ids, until nothing holds the qube's disks.
"""
from __future__ import annotations

import contextlib
import fcntl
import os


def _path(folder: str, uuid: str) -> str:
    return os.path.join(folder, f"life.{uuid}")


def take(folder: str, uuid: str) -> int:
    """The descriptor to hand on. Raises BlockingIOError if the qube lives already."""
    fd = os.open(_path(folder, uuid), os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def wait_gone(folder: str, uuid: str) -> None:
    """Block until nobody holds it. Call it in a thread."""
    try:
        fd = os.open(_path(folder, uuid), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
    finally:
        os.close(fd)


def drop(folder: str, uuid: str) -> None:
    """Remove the file; the lock of a living qube stays with its descriptors."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(_path(folder, uuid))


def known(folder: str) -> list[str]:
    """Uuids that have a file, alive or not."""
    return [name.removeprefix("life.") for name in os.listdir(folder) if name.startswith("life.")]
