"""The server's end of NBD, the network block device protocol: bytes in, requests out; no I/O.

A handshake may be held by somebody else than who serves the requests after it: `Server.handshake`, `Server(greeted=True)`.
It serves one export, whatever name the client asks for, with the oldest form of reply, which every client knows: the newstyle
handshake, then reads, writes and flushes one after the other. The client is a hypervisor that a hostile qube may own: each
length is checked before its data is waited for, and at most one request's data is held.
"""
from __future__ import annotations

import enum
import struct
from typing import Final, NamedTuple

from cloison.errors import PeerError

MAX_LENGTH: Final = 1 << 20             # bytes of one request; the client is told
MAX_OPTION: Final = 8192                # bytes of an option's data: a name has 4096 at most
MAX_OPTIONS: Final = 32                 # of one handshake

_GREETING: Final = struct.Struct(">8s8sH")
_OPTION: Final = struct.Struct(">8sII")             # magic, option, length of its data
_OPTION_REPLY: Final = struct.Struct(">QIII")       # magic, option, kind, length of its data
_EXPORT: Final = struct.Struct(">HQH")              # kind of information, size, flags
_BLOCK_SIZES: Final = struct.Struct(">HIII")        # kind of information, least, preferred, most
_OLD_EXPORT: Final = struct.Struct(">QH")           # size, flags
_REQUEST: Final = struct.Struct(">IHH8sQI")         # magic, flags, command, handle, offset, length
_REPLY: Final = struct.Struct(">II8s")              # magic, error, handle
_U32: Final = struct.Struct(">I")
_U16: Final = struct.Struct(">H")

_MAGIC, _OPTION_MAGIC = b"NBDMAGIC", b"IHAVEOPT"
_OPTION_REPLY_MAGIC, _REQUEST_MAGIC, _REPLY_MAGIC = 0x3E889045565A9, 0x25609513, 0x67446698
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
_EXPORT_NAME, _ABORT, _INFO, _GO = 1, 2, 6, 7
_ACK, _INFORMATION, _UNSUPPORTED, _INVALID = 1, 3, (1 << 31) + 1, (1 << 31) + 3
_HAS_FLAGS, _READ_ONLY, _SEND_FLUSH, _SEND_FUA = 1, 2, 4, 8
_COMMAND_FUA = 1
_READ, _WRITE, _DISCONNECT, _FLUSH = 0, 1, 2, 3

NOT_PERMITTED, IO_ERROR, INVALID, NO_SPACE = 1, 5, 22, 28       # the errors that a reply may carry, by their numbers on the wire


class Do(enum.Enum):
    READ = _READ
    WRITE = _WRITE
    FLUSH = _FLUSH


class Request(NamedTuple):
    """`length` bytes at `offset`, both within the export; `data` of a write. `sync`: on the disk before it is answered."""

    do: Do
    handle: bytes
    offset: int = 0
    length: int = 0
    data: bytes = b""
    sync: bool = False


class Server:
    """Feed it bytes, take `output` and requests, and answer each request with `reply`. `over`: the client has said goodbye.

    Raises PeerError for whatever leaves the protocol: hang up then.
    """

    def __init__(self, size: int, *, read_only: bool, greeted: bool = False) -> None:
        """`greeted`: somebody else has held the handshake."""
        self._size, self._read_only = size, read_only
        self._flags = _HAS_FLAGS | _SEND_FLUSH | _SEND_FUA | (_READ_ONLY if read_only else 0)
        self._buffer = bytearray()
        self._output = bytearray() if greeted else bytearray(_GREETING.pack(_MAGIC, _OPTION_MAGIC, _FIXED_NEWSTYLE | _NO_ZEROES))
        self._client_flags: int | None = None
        self._options = 0
        self._serving = greeted
        self.over = False

    def feed(self, untrusted: bytes) -> None:
        self._buffer += untrusted

    def output(self) -> bytes:
        """What is to be sent now."""
        data = bytes(self._output)
        self._output.clear()
        return data

    def reply(self, request: Request, data: bytes = b"", error: int = 0) -> None:
        """`data` is what was read; nothing of it goes with an error."""
        self._output += _REPLY.pack(_REPLY_MAGIC, error, request.handle)
        if not error:
            self._output += data

    def handshake(self) -> bytes | None:
        """For who holds the handshake only: what the client has sent after it. None: more bytes are needed, or it is over."""
        return self._take(len(self._buffer)) if self._greet() else None

    def _greet(self) -> bool:
        """Whether the handshake has been held."""
        while not self._serving:
            if self.over or not self._negotiate():
                return False
        return True

    def next_request(self) -> Request | None:
        """None: more bytes are needed, or it is over. What can't be served is answered here."""
        if not self._greet():
            return None
        while not self.over and (request := self._whole_request()) is not None:
            command, wanted = request
            error = self._fault(command, wanted)
            if not error:
                return wanted
            self.reply(wanted, error=error)
        return None

    # -- handshake -----------------------------------------------------------------------------------------------------

    def _take(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _negotiate(self) -> bool:
        """One step; False when more bytes are needed."""
        if self._client_flags is None:
            if len(self._buffer) < _U32.size:
                return False
            self._client_flags = _U32.unpack(self._take(_U32.size))[0]
            if not self._client_flags & _FIXED_NEWSTYLE or self._client_flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
                raise PeerError("an NBD client of an unknown kind")
            return True
        if len(self._buffer) < _OPTION.size:
            return False
        magic, option, length = _OPTION.unpack_from(self._buffer)
        if magic != _OPTION_MAGIC or length > MAX_OPTION or self._options >= MAX_OPTIONS:
            raise PeerError("not an NBD option, too long a one, or too many")
        if len(self._buffer) < _OPTION.size + length:
            return False
        self._options += 1
        self._option(option, self._take(_OPTION.size + length)[_OPTION.size:])
        return True

    def _option(self, option: int, untrusted: bytes) -> None:
        if option == _EXPORT_NAME:
            zeroes = b"" if (self._client_flags or 0) & _NO_ZEROES else bytes(124)
            self._output += _OLD_EXPORT.pack(self._size, self._flags) + zeroes
            self._serving = True
        elif option == _ABORT:
            self._answer(option, _ACK)
            self.over = True
        elif option not in (_INFO, _GO):
            self._answer(option, _UNSUPPORTED)
        elif not _is_export_request(untrusted):
            self._answer(option, _INVALID)
        else:
            self._answer(option, _INFORMATION, _EXPORT.pack(0, self._size, self._flags))
            self._answer(option, _INFORMATION, _BLOCK_SIZES.pack(3, 1, 4096, MAX_LENGTH))
            self._answer(option, _ACK)
            self._serving = option == _GO

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._output += _OPTION_REPLY.pack(_OPTION_REPLY_MAGIC, option, kind, len(data)) + data

    # -- requests ------------------------------------------------------------------------------------------------------

    def _whole_request(self) -> tuple[int, Request] | None:
        """The command as it was sent, and the request if that is one of `Do`; None: more bytes are needed, or it is over."""
        if len(self._buffer) < _REQUEST.size:
            return None
        magic, flags, command, handle, offset, length = _REQUEST.unpack_from(self._buffer)
        if magic != _REQUEST_MAGIC:
            raise PeerError("not an NBD request")
        if command == _DISCONNECT:
            self.over = True
            return None
        carried = length if command == _WRITE else 0
        if carried > MAX_LENGTH:
            raise PeerError("an NBD write of too many bytes", length)
        if len(self._buffer) < _REQUEST.size + carried:
            return None
        data = self._take(_REQUEST.size + carried)[_REQUEST.size:]
        do = Do(command) if command in _COMMANDS else Do.FLUSH
        return command, Request(do, handle, offset, length, data, bool(flags & _COMMAND_FUA))

    def _fault(self, command: int, request: Request) -> int:
        """Why it can't be served, as a number for the reply; 0 if it can."""
        if command not in _COMMANDS:
            return INVALID
        if request.do is Do.FLUSH:
            return 0
        if request.do is Do.WRITE and self._read_only:
            return NOT_PERMITTED
        if request.length > MAX_LENGTH or not request.length:
            return INVALID
        if request.offset + request.length > self._size:
            return NO_SPACE if request.do is Do.WRITE else INVALID
        return 0


_COMMANDS: Final = tuple(each.value for each in Do)


def _is_export_request(untrusted: bytes) -> bool:
    """A name and a list of kinds of information, of which it gets all there is."""
    if len(untrusted) < _U32.size + _U16.size:
        return False
    name: int = _U32.unpack_from(untrusted)[0]
    if len(untrusted) < _U32.size + name + _U16.size:
        return False
    kinds: int = _U16.unpack_from(untrusted, _U32.size + name)[0]
    return len(untrusted) == _U32.size + name + _U16.size * (1 + kinds)
