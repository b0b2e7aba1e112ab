"""QubesDB on the wire: one kind of message both ways, on a qube's vchan and on the local socket of a daemon.

    u8 type, char path[64] (NUL-terminated), 3 bytes of padding, u32 length; then the value. Little endian, 72 bytes.

Other implementations leave old bytes after the path's NUL and in the padding, so both are read over; ours are zero. The
limits are those that qubesdb-daemon really enforces: a value is *below* 3072 bytes, and a path holds no `+`. A path is empty
("everything", or the end of a series) or begins with `/`. Raises PeerError for all else.
"""
from __future__ import annotations

import struct
from typing import Final, NamedTuple

from cloison.errors import PeerError

PORT: Final = 111

READ: Final = 0
WRITE: Final = 1
MULTIREAD: Final = 2
LIST: Final = 3
RM: Final = 4
WATCH: Final = 5
UNWATCH: Final = 6
RESP_OK: Final = 7
RESP_ERROR_NOENT: Final = 8
RESP_ERROR: Final = 9
RESP_READ: Final = 10
RESP_MULTIREAD: Final = 11
RESP_LIST: Final = 12
RESP_WATCH: Final = 13

HEADER: Final = struct.Struct("<B64s3xI")
PATH_FIELD: Final = 64
MAX_PATH: Final = PATH_FIELD - 1         # bytes
MAX_VALUE: Final = 3071                  # bytes

_PATH_CHARACTERS: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-/.:@"


class Message(NamedTuple):
    """`value` is empty for the types that carry none."""

    kind: int
    path: str = ""
    value: bytes = b""


Limits = dict[int, int]                  # type -> greatest length of its value

# What may come in, by channel and end. A vchan has the same rules both ways.
VCHAN: Final[Limits] = {
    WRITE: MAX_VALUE, MULTIREAD: 0, RM: 0, RESP_OK: 0, RESP_ERROR_NOENT: 0, RESP_ERROR: 0, RESP_MULTIREAD: MAX_VALUE,
}
TO_DAEMON: Final[Limits] = {READ: 0, WRITE: MAX_VALUE, MULTIREAD: 0, LIST: 0, RM: 0, WATCH: 0, UNWATCH: 0}
TO_CLIENT: Final[Limits] = {
    RESP_OK: 0, RESP_ERROR_NOENT: 0, RESP_ERROR: 0, RESP_READ: MAX_VALUE, RESP_MULTIREAD: MAX_VALUE, RESP_LIST: 0,
    RESP_WATCH: 0,
}


class Decoder:
    """Feed it bytes as they come; take messages out until None, which means "need more"."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._buffer = bytearray()

    def feed(self, untrusted: bytes) -> None:
        self._buffer += untrusted

    def next_message(self) -> Message | None:
        if len(self._buffer) < HEADER.size:
            return None
        kind, field, length = HEADER.unpack_from(self._buffer)
        limit = self._limits.get(kind)
        if limit is None:
            raise PeerError("unexpected message type", kind)
        if length > limit:
            raise PeerError("value too long", kind, length)
        path = _path(field)
        end = HEADER.size + length
        if len(self._buffer) < end:
            return None
        value = bytes(self._buffer[HEADER.size:end])
        del self._buffer[:end]
        return Message(kind, path, value)


def _path(untrusted: bytes) -> str:
    text, nul, _ = untrusted.partition(b"\0")
    if not nul:
        raise PeerError("a path without a NUL")
    if not is_path_text(text):
        raise PeerError("not a path", text)
    return text.decode("ascii")


def is_path_text(untrusted: bytes) -> bool:
    """Whether the bytes may stand as a path or a prefix in a message."""
    if len(untrusted) > MAX_PATH or untrusted.translate(None, _PATH_CHARACTERS):
        return False
    return not untrusted or untrusted.startswith(b"/")


def encode(kind: int, path: str = "", value: bytes = b"") -> bytes:
    """Raises ValueError for a path or a value that no message may carry."""
    text = path.encode("ascii")
    if not is_path_text(text) or len(value) > MAX_VALUE:
        raise ValueError(f"can't be sent: path {path!r} with a value of {len(value)} bytes")
    return HEADER.pack(kind, text, len(value)) + value
