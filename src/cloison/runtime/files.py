"""Files that are the old one or the new one, whatever dies in between."""
from __future__ import annotations

import contextlib
import fcntl
import os
import secrets


def fsync_dir(path: str) -> None:
    """Make renames and unlinks in this folder durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename(src: str, dst: str) -> None:
    """Atomic and durable. Both on one file system."""
    os.rename(src, dst)
    fsync_dir(os.path.dirname(dst) or ".")


def write_atomic(path: str, data: bytes, mode: int = 0o600) -> None:
    """Readers see the old content or the new one, never a part. A temporary left by a crash ends in `.tmp`."""
    temporary = f"{path}.{secrets.token_hex(4)}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        rename(temporary, path)
    except BaseException:
        if os.path.lexists(temporary):
            os.unlink(temporary)
        raise


def try_lock(path: str) -> int | None:
    """A descriptor that holds the file locked until it is closed; None if somebody else does. Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd
    os.close(fd)
    return None
