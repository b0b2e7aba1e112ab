"""The walls around an unpacker: system calls that Python's library lacks. Each raises OSError.

First wall: every open goes through `openat2`, beneath the destination and through no symbolic link, whatever is swapped under us
(QSB-014). Second wall: the process sees nothing but the destination, mounted without devices, set-uid bits and programs, and has
no privileges left. An ordinary user gets the second one in a user namespace of his own.
"""
from __future__ import annotations

import ctypes
import errno
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long

# These system calls have the same numbers on every machine but alpha.
_OPEN_TREE, _OPENAT2, _MOUNT_SETATTR = 428, 437, 442
_RESOLVE_NO_XDEV, _RESOLVE_NO_MAGICLINKS, _RESOLVE_NO_SYMLINKS, _RESOLVE_BENEATH = 1, 2, 4, 8
_RESOLVE = _RESOLVE_NO_XDEV | _RESOLVE_NO_MAGICLINKS | _RESOLVE_NO_SYMLINKS | _RESOLVE_BENEATH
_AT_EMPTY_PATH, _OPEN_TREE_CLONE = 0x1000, 1
_MOUNT_NOSUID, _MOUNT_NODEV, _MOUNT_NOEXEC = 2, 4, 8
_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_PR_SET_NO_NEW_PRIVS = 38
_CAPABILITY_VERSION_3 = 0x20080522
# What a kernel says that gives this user no namespace: not allowed, none left, none built in.
NO_NAMESPACE = (errno.EPERM, errno.EACCES, errno.ENOSPC, errno.EUSERS, errno.EINVAL, errno.ENOSYS)


def open_beneath(folder: int, path: bytes, flags: int) -> int:
    """A descriptor of what lies at `path` below `folder`; no link is followed on the way, nor at the end."""
    how = struct.pack("=QQQ", flags | os.O_CLOEXEC | os.O_NOCTTY, 0, _RESOLVE)
    return _check(_libc.syscall(_OPENAT2, folder, path, how, ctypes.c_size_t(len(how))))


def sync_filesystem(fd: int) -> None:
    """What was written to the file system that `fd` is on is on its disk when this returns."""
    _check(_libc.syncfs(fd))


def new_namespace() -> None:
    """Mounts of our own; where that needs a user namespace, we are the same user in it. The process has one thread."""
    try:
        _check(_libc.unshare(_CLONE_NEWNS))
    except PermissionError:
        user, group = os.geteuid(), os.getegid()
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNS))
        for name, text in (("setgroups", "deny"), ("uid_map", f"{user} {user} 1"), ("gid_map", f"{group} {group} 1")):
            fd = os.open(f"/proc/self/{name}", os.O_WRONLY | os.O_CLOEXEC)
            os.write(fd, text.encode())
            os.close(fd)


def shut_in(folder: int) -> int:
    """Make `folder` all that this process sees; the new descriptor of it. `new_namespace` was called."""
    tree = _check(_libc.syscall(_OPEN_TREE, folder, b"", _OPEN_TREE_CLONE | _AT_EMPTY_PATH | os.O_CLOEXEC))
    attributes = struct.pack("=QQQQ", _MOUNT_NOSUID | _MOUNT_NODEV | _MOUNT_NOEXEC, 0, 0, 0)
    _check(_libc.syscall(_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, attributes, ctypes.c_size_t(len(attributes))))
    os.fchdir(tree)
    os.close(tree)
    os.chroot(".")
    return os.open("/", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def drop_privileges() -> None:
    """No capability stays, and no program can bring one back."""
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    _check(_libc.capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), bytes(24)))


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
