"""Files that a box may read and nothing else, as descriptors for a box whose user has no name that leads to them.

That a descriptor was opened for reading is no protection: who owns the file changes its mode and opens it again through /proc.
Two things are. A *frozen* descriptor was opened through a read-only mount of that one file, in no folder anywhere: whatever is
tried on it or through it fails with EROFS. A *sealed* copy is memory that nobody can write to any more.
"""
from __future__ import annotations

import ctypes
import fcntl
import os

from cloison.errors import MachineError

_OPEN_TREE, _OPEN_TREE_CLONE, _MOUNT_SETATTR, _AT_EMPTY_PATH = 428, 1, 442, 0x1000
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8
_F_ADD_SEALS = 1033
_SEALS = 0x1 | 0x2 | 0x4 | 0x8   # no more seals, no shrinking, no growing, no writing
_COPY = 1 << 22
_libc = ctypes.CDLL(None, use_errno=True)


class _Attributes(ctypes.Structure):
    """struct mount_attr."""

    _fields_ = (("set", ctypes.c_uint64), ("clear", ctypes.c_uint64), ("propagation", ctypes.c_uint64), ("user", ctypes.c_uint64))


def frozen(fd: int) -> int:
    """A new descriptor of the same file, on a read-only mount of its own. For the host's root. Raises OSError."""
    mount = _checked(_libc.syscall(_OPEN_TREE, fd, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC))
    try:
        attributes = _Attributes(set=_RDONLY | _NOSUID | _NODEV | _NOEXEC)
        _checked(_libc.syscall(_MOUNT_SETATTR, mount, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), ctypes.sizeof(attributes)))
        return os.open(f"/proc/self/fd/{mount}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(mount)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def sealed(path: str, name: str) -> int:
    """A copy of a small file in memory that nobody can change; `name` is for people who look at /proc. Raises MachineError."""
    target = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with open(path, "rb") as source:
            while data := source.read(_COPY):
                _write(target, data)
        seal(target)
    except OSError as error:
        os.close(target)
        raise MachineError(f"{path} can't be loaded: {error.strerror}") from error
    return target


def _write(target: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(target, view):]


def seal(fd: int) -> None:
    """From here on the content of this memory stays as it is. Raises OSError."""
    fcntl.fcntl(fd, _F_ADD_SEALS, _SEALS)


def again(fd: int) -> int:
    """A sealed file opened once more, to read, with a position of its own."""
    return os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
