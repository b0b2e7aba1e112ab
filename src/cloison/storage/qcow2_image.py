"""Writing empty qcow2 images, and checking the header of one that comes back.

An overlay must cost well under a millisecond at a qube's start; running qemu-img costs sixty. An empty image is three
short writes into a sparse file, so we write it ourselves. It names no backing file: who backs whom is given explicitly
to QEMU each time (`-blockdev`), never read from a file that a guest's QEMU could write to.

Layout, in clusters of 64 KiB: header, refcount table, one refcount block, L1 table, and the LUKS header of an encrypted one. The
L1 table takes its whole cluster at any size, so growing an image is one number in its header (and QEMU's own resize never moves
the table).
"""
from __future__ import annotations

import os
import struct
from dataclasses import dataclass

from cloison.storage.base import MAX_SIZE, PoolError, checked_size

CLUSTER = 1 << 16
MAGIC = b"QFI\xfb"
_L1_ENTRIES = CLUSTER // 8          # MAX_SIZE in all
_MAPPED = 512 << 20                 # bytes of the disk that each maps
_L1_AT = 3 * CLUSTER
_SIZE_OFFSET, _L1_FIELDS = 24, 36
# magic, version, backing offset and length, cluster bits | size, encryption, L1 entries and offset, refcount table
# offset and clusters | internal snapshots and their offset, feature bits (incompatible, compatible, autoclear),
# refcount order, header length
_HEADER = struct.Struct(">4sIQII QIIQQI IQ QQQ II")
_DIRTY_BIT = 1                      # the one incompatible feature that may be seen: refcounts may be behind
_PLAIN, _LUKS = 0, 2                # how the clusters are encrypted
_LUKS_AT = 4 * CLUSTER
_EXTENSION = struct.Struct(">II QQ")    # after the header: kind, bytes of what follows, place and length of the LUKS header
_LUKS_EXTENSION = 0x0537BE77


@dataclass(frozen=True)
class Region:
    """Bytes at an offset of a sparse file."""

    offset: int
    data: bytes


@dataclass(frozen=True)
class Encryption:
    """The LUKS header of an encrypted image: its beginning, and how long it is with the zeros that follow (`storage/luks.py`)."""

    header: bytes
    length: int


def empty_image(size: int, encryption: Encryption | None = None) -> tuple[tuple[Region, ...], int]:
    """The regions that are not zero, and the file's length, of an image of `size` bytes (whole sectors) with no content."""
    header = _HEADER.pack(
        MAGIC, 3, 0, 0, 16,
        size, _LUKS if encryption else _PLAIN, _L1_ENTRIES, _L1_AT, CLUSTER, 1,
        0, 0, 0, 0, 0, 4, _HEADER.size,
    )
    luks: tuple[Region, ...] = ()
    length = _LUKS_AT
    if encryption is not None:
        header += _EXTENSION.pack(_LUKS_EXTENSION, 16, _LUKS_AT, encryption.length)
        luks = (Region(_LUKS_AT, encryption.header),)
        length += -(-encryption.length // CLUSTER) * CLUSTER
    refcount_table = struct.pack(">Q", 2 * CLUSTER)
    refcounts = struct.pack(">H", 1) * (length // CLUSTER)
    return (Region(0, header), Region(CLUSTER, refcount_table), Region(2 * CLUSTER, refcounts), *luks), length


def create_overlay_fd(fd: int, size: int, encryption: Encryption | None = None) -> None:
    """Write an empty image of `size` bytes into an empty file, open for writing (`O_TMPFILE` will do). No fsync.

    Raises PoolError for a size out of range, OSError when the disk is full.
    """
    regions, length = empty_image(checked_size(size), encryption)
    os.ftruncate(fd, length)
    for region in regions:
        os.pwrite(fd, region.data, region.offset)


def create_overlay(path: str, size: int) -> None:
    """The same as a new durable file of mode 0600. Nothing may be there; the caller makes the name durable."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        create_overlay_fd(fd, size)
        os.fsync(fd)
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def checked_header(fd: int) -> int:
    """Virtual size of an image that must look as one of ours does: no backing file, no data file, no encryption.

    These hundred bytes are QEMU's, not the guest's; a guest that broke out of its QEMU could have written them, and an
    image that names other files must never get further (QSB-021). Raises PoolError.
    """
    data = os.pread(fd, _HEADER.size, 0)
    if len(data) < _HEADER.size or data[:4] != MAGIC:
        raise _damaged("it has no qcow2 header")
    size: int
    (_, version, backing, backing_length, cluster_bits, size, crypt, entries, table, _, _, snapshots, _,
     incompatible, _, _, _, _) = _HEADER.unpack(data)
    if version != 3 or cluster_bits != 16:
        raise _damaged("it is a qcow2 of another kind than Cloison makes")
    if backing or backing_length or crypt or snapshots or incompatible & ~_DIRTY_BIT:
        raise _damaged("its qcow2 header refers to what Cloison never puts there, or QEMU marked it corrupt")
    if not 1 <= size <= MAX_SIZE:
        raise _damaged(f"its header claims {size} bytes")
    if table + 8 * entries > os.fstat(fd).st_size:
        raise _damaged("it ends before its own table of clusters does")
    if table % CLUSTER or not table or entries * _MAPPED < size:
        raise _damaged("its table of clusters is not where one can be, or too short")
    return size


def _damaged(why: str) -> PoolError:
    return PoolError("damaged disk image", why)


def is_empty(fd: int) -> bool:
    """Whether no cluster was ever written: the L1 table lies where we put it, and is zeros. Raises what `checked_header` does."""
    checked_header(fd)
    entries, offset = struct.unpack(">IQ", os.pread(fd, 12, _L1_FIELDS))
    return entries == _L1_ENTRIES and offset == _L1_AT and os.pread(fd, CLUSTER, _L1_AT) == bytes(CLUSTER)


def grow(fd: int, size: int) -> None:
    """Make an image at least `size` bytes large, as the guest sees it. No QEMU may be changing its size now.

    Raises PoolError for an image that `checked_header` refuses.
    """
    if checked_header(fd) < size:
        os.pwrite(fd, struct.pack(">Q", checked_size(size)), _SIZE_OFFSET)
        os.fsync(fd)
