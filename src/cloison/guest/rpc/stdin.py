"""Reading what a caller sends, within bounds."""
from __future__ import annotations

import os

from cloison.errors import PeerError


def read_line(limit: int, fd: int = 0) -> bytes:
    """The bytes before the first LF or the end; nothing behind the LF is taken. Raises PeerError beyond `limit` bytes."""
    untrusted = bytearray()
    while (byte := os.read(fd, 1)) not in (b"", b"\n"):
        untrusted += byte
        if len(untrusted) > limit:
            raise PeerError(f"a line of more than {limit} bytes")
    return bytes(untrusted)


def read_exactly(length: int, fd: int = 0) -> bytes:
    """Raises PeerError if less comes."""
    untrusted = bytearray()
    while len(untrusted) < length and (piece := os.read(fd, length - len(untrusted))):
        untrusted += piece
    if len(untrusted) < length:
        raise PeerError(f"{length} bytes were due, {len(untrusted)} came")
    return bytes(untrusted)


def copy(source: int, sink: int, buffer: int = 1 << 17) -> int:
    """Everything to the end of `source`; how many bytes. Both block. Raises OSError."""
    total = 0
    while piece := memoryview(os.read(source, buffer)):
        total += len(piece)
        while piece:
            piece = piece[os.write(sink, piece):]
    return total
