"""Filling a volume from a file: the host's own way through the internal socket (reference/admin-api.md 1.6).

qubesd gives a path and waits for the end; if this process dies in between, qubesd drops the half import when the qube or
qubesd starts next.
"""
from __future__ import annotations

import contextlib
import os
from typing import BinaryIO

from cloison.client.connection import Connection
from cloison.errors import CloisonError, PeerError

_CHUNK = 1 << 20
_ZEROES = bytes(_CHUNK)


class ImportFailed(CloisonError):
    """The source did not hold what was announced, or the disk is full. The volume is as it was."""


def import_volume(connection: Connection, qube: str, volume: str, source: BinaryIO, size: int | None) -> None:
    """Replace the volume's content by `size` bytes of the source. `size` None: keep the volume's size, and fill all of it; a source
    that holds nothing at all, as /dev/null, then makes it all zeros.
    """
    method = "internal.vm.volume.Import"
    announced = b"" if size is None else str(size).encode()
    reply = connection.call(qube, method + "Begin", volume, announced, internal=True).decode()
    length, space, path = reply.rstrip("\n").partition(" ")
    if not space or not length.isdecimal():
        raise PeerError("not an import", reply[:60])
    try:
        _copy(source, path, int(length), may_be_empty=size is None)
    except BaseException as error:
        with contextlib.suppress(CloisonError):   # qubesd answers with our own text
            connection.call(qube, method + "End", volume, f"fail\n{error}".encode(), internal=True)
        raise
    connection.call(qube, method + "End", volume, b"ok", internal=True)


def _copy(source: BinaryIO, path: str, size: int, *, may_be_empty: bool) -> None:
    """Exactly `size` bytes, holes kept. Raises ImportFailed for fewer or more, OSError for a full disk."""
    with open(os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW), "wb") as target:
        left = size
        while left:
            data = source.read(min(left, _CHUNK))
            if not data and may_be_empty and left == size:
                break
            if not data:
                raise ImportFailed(f"the image is {left} bytes shorter than the {size} announced")
            if data == _ZEROES:
                target.seek(len(data), os.SEEK_CUR)
            else:
                target.write(data)
            left -= len(data)
        if source.read(1):
            raise ImportFailed(f"the image is longer than the {size} bytes announced")
        target.flush()
        os.fdatasync(target.fileno())
