"""Writer of cpio archives in the "newc" format, which is what Linux unpacks as an initramfs.

Deterministic: the same entries give the same bytes (owner 0:0, no times, inodes counted from 1), so an initramfs can be
compared by content. Format: the kernel's "initramfs buffer format" page.
"""
from __future__ import annotations

import stat
from collections.abc import Iterable
from dataclasses import dataclass

_MAGIC = b"070701"
_TRAILER = "TRAILER!!!"
MAX_SIZE = 0xFFFFFFFF
MAX_NAME = 4095


@dataclass(frozen=True)
class Entry:
    """One file. `mode` holds type and permission bits; `data` is a file's content or a symlink's target, else empty."""

    name: str
    mode: int
    data: bytes = b""


def directory(name: str) -> Entry:
    return Entry(name, stat.S_IFDIR | 0o755)


def file(name: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(name, stat.S_IFREG | (0o755 if executable else 0o644), data)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, stat.S_IFLNK | 0o777, target.encode())


def archive(entries: Iterable[Entry]) -> bytes:
    """The whole archive. Raises ValueError for a name or a content that the format can't hold.

    A folder must come before what it holds: the kernel makes no parents.
    """
    parts = [_record(inode, entry) for inode, entry in enumerate(entries, start=1)]
    return b"".join((*parts, _record(0, Entry(_TRAILER, 0))))


def _record(inode: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    if not 1 < len(name) <= MAX_NAME + 1 or entry.name.startswith("/") or "\0" in entry.name:
        raise ValueError(f"{entry.name[:60]!r} can't be a name in a cpio archive")
    if len(entry.data) > MAX_SIZE:
        raise ValueError(f"{entry.name} is too long for a cpio archive")
    links = 2 if stat.S_ISDIR(entry.mode) else 1
    # inode, mode, uid, gid, links, mtime, size, device major and minor, its own major and minor, name's length, checksum
    numbers = (inode, entry.mode, 0, 0, links, 0, len(entry.data), 0, 0, 0, 0, len(name), 0)
    header = _MAGIC + b"".join(b"%08X" % number for number in numbers)
    return _padded(header + name) + _padded(entry.data)


def _padded(data: bytes) -> bytes:
    """Header with name, and content, each end on a multiple of four bytes."""
    return data + bytes(-len(data) % 4)
