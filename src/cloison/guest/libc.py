"""The few system calls that Python's library lacks. Each raises OSError."""
from __future__ import annotations

import ctypes
import fcntl
import os
import struct

_libc = ctypes.CDLL(None, use_errno=True)

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND = 1, 2, 4, 8, 32, 4096
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    _check(_libc.mount(source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode()), target)


def unmount(target: str) -> None:
    _check(_libc.umount2(target.encode(), 0), target)


def swapon(path: str) -> None:
    _check(_libc.swapon(path.encode(), 0), path)


def sync() -> None:
    _libc.sync()


def sync_filesystem(path: str) -> None:
    """Everything written to the file system that the path is on is on its disk when this returns."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _check(_libc.syncfs(fd), path)
    finally:
        os.close(fd)


def reseed(entropy: bytes) -> None:
    """Mix entropy into the kernel's pool, credit it, and make the generator take it up now."""
    fd = os.open("/dev/urandom", os.O_WRONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(fd, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
        fcntl.ioctl(fd, RNDRESEEDCRNG)
    finally:
        os.close(fd)
