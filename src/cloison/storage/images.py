"""The files of a pool: locks, links, durable images, and sweeping what has no owner.

Raises OSError where not said otherwise; whoever calls says what it was about (`base.explained`).
"""
from __future__ import annotations

import errno
import fcntl
import os
import re
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress

from cloison.runtime import holders
from cloison.runtime.files import fsync_dir
from cloison.storage.base import PoolError, checked_size, explained
from cloison.storage.qcow2_image import checked_header

IMAGE = re.compile(r"([a-z][a-z0-9_-]*)\.[0-9]+\.(?:raw|qcow2)")
TEMPORARY = re.compile(r"([a-z][a-z0-9_-]*)\.(?:import\.raw|export-[0-9a-f]+\.raw|.*\.tmp)")
COMMIT_MODE = 0o400
COMPARED = 1 << 20              # bytes that are read of two files at once


def make_folder(path: str) -> None:
    """A durable folder of ours alone; there already is fine. The one above must be there."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        fsync_dir(os.path.dirname(path))


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Hold a folder, made if need be, against other threads and processes. It goes when it is empty at the end."""
    fd = _lock(folder)
    try:
        yield
    finally:
        with suppress(OSError):
            os.rmdir(folder)
        os.close(fd)


def _lock(folder: str) -> int:
    """The lock is the descriptor's; once more when the folder was removed while we waited."""
    while True:
        make_folder(folder)
        with suppress(FileNotFoundError):
            fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                if os.path.samestat(os.fstat(fd), os.stat(folder)):
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)


def sweep(folder: str, volume: str, keep: Collection[str]) -> None:
    """Unlink the image files of a volume that are not named in `keep`."""
    for file in sorted(os.listdir(folder)):
        match = IMAGE.fullmatch(file)
        if match and match[1] == volume and file not in keep:
            os.unlink(os.path.join(folder, file))


def sweep_temporaries(folder: str, volume: str | None = None) -> None:
    """Unlink what imports, exports and interrupted writes left, of one volume or of all."""
    for file in sorted(os.listdir(folder)):
        match = TEMPORARY.fullmatch(file)
        if match and volume in (None, match[1]):
            os.unlink(os.path.join(folder, file))


@contextmanager
def opened(path: str, flags: int = os.O_RDONLY) -> Iterator[int]:
    """Descriptor of an image that must be a regular file. Raises PoolError, OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise PoolError("not a disk image", f"{os.path.basename(path)} is not an ordinary file")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def created(path: str) -> Iterator[int]:
    """Descriptor of a new file of mode 0600. Nothing may be there; it goes again if the block fails."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        yield fd
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def copy_data(source: int, target: int) -> None:
    """Fill an empty file from another one's, holes kept, inside the kernel: nothing of it is looked at."""
    size = os.fstat(source).st_size
    os.ftruncate(target, size)
    end = 0
    while (start := next_data(source, end)) < size:
        end = os.lseek(source, start, os.SEEK_HOLE)
        while start < end:
            start += _copy_range(source, target, start, end - start)


def _copy_range(source: int, target: int, offset: int, count: int) -> int:
    """Bytes copied: at least one. Shares blocks where the file system can."""
    try:
        copied = os.copy_file_range(source, target, count, offset, offset)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        os.lseek(target, offset, os.SEEK_SET)
        copied = os.sendfile(target, source, offset, count)
    if copied == 0:
        raise OSError(errno.EIO, "the image became shorter while it was copied")
    return copied


def copy_content(path: str, target: str) -> None:
    """The same between two files that are there, on whatever file systems, and durably. Raises PoolError."""
    with explained("can't copy an image"), opened(path) as source, opened(target, os.O_RDWR) as copy:
        size = os.fstat(copy).st_size
        os.ftruncate(copy, 0)
        copy_data(source, copy)
        os.ftruncate(copy, size)
        os.fsync(copy)


def same_content(one: str, other: str) -> bool:
    """Whether two files are alike to the byte. Reading stops at the first difference; holes of both are not read. Raises PoolError,
    OSError.
    """
    with opened(one) as first, opened(other) as second:
        size = os.fstat(first).st_size
        if os.fstat(second).st_size != size:
            return False
        offset = 0
        while (offset := min(next_data(first, offset), next_data(second, offset))) < size:
            data = os.pread(first, COMPARED, offset)
            if not data or data != os.pread(second, COMPARED, offset):
                return False
            offset += len(data)
    return True


def next_data(fd: int, offset: int) -> int:
    """Where data begins at or after `offset`; the file's end if nowhere."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        if error.errno != errno.ENXIO:      # only a hole follows
            raise
        return os.fstat(fd).st_size


def seal(path: str, format: str) -> int:
    """Make a finished image durable and read-only for good; the size its guest sees. Raises PoolError, OSError."""
    if format not in ("raw", "qcow2"):
        raise PoolError("not an image format", f"{format[:20]!r} is neither raw nor qcow2")
    with opened(path) as fd:
        size = checked_header(fd) if format == "qcow2" else os.fstat(fd).st_size
        checked_size(size)
        os.fsync(fd)
        os.fchmod(fd, COMMIT_MODE)
    return size


def sparse_file(path: str, size: int) -> None:
    """A new file of zeros. Nothing may be there."""
    with created(path) as fd:
        os.ftruncate(fd, size)


def unlink(path: str) -> None:
    """Gone already is fine."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def drop_abandoned(path: str, seconds: float) -> bool:
    """Unlink a file that no process has open and that nobody has written to for so long. False: it stays."""
    with opened(path) as fd:
        if time.time() - os.fstat(fd).st_mtime < seconds or not holders.lease(fd):
            return False
        os.unlink(path)
        return True


def link(path: str, target: str) -> None:
    """One more name for an immutable image, in the place of a left-over. Raises PoolError for what is no image."""
    with opened(path):
        unlink(target)
    os.link(path, target, follow_symlinks=False)
