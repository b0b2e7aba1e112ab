"""The file copy stream of qubes.Filecopy, both ways, and which names it may carry (reference/qrexec.md 21).

A stream is entries (a header of 32 bytes, a name, a content) and an end header; the answer is an error number, a checksum and the
last name. Everything here is pure. `Decoder` is total over hostile bytes: what is against the rules raises `Refused` with the
error number that the answer carries. Programs in emulated guests import this on a person's clock: hence so few imports.
"""
from __future__ import annotations

import errno
import struct
from zlib import crc32

HEADER = struct.Struct("<IIQIIII")       # name's length, mode, size, access time (s, ns), modification time (s, ns)
RESULT = struct.Struct("<IIQ")           # error number, 0, checksum
NAME_LENGTH = struct.Struct("<I")
END = bytes(HEADER.size)

NAME_MAX = 16383                         # a name with its NUL; also a link's text
NANOSECONDS = 10**9
ENDED_EARLY = 31415926                   # "error number" of a receiver whose sender stopped inside an entry
MAX_SIZE = 2**63 - 1
MODE_TYPE, REGULAR, FOLDER, LINK = 0o170000, 0o100000, 0o040000, 0o120000
PERMISSIONS = 0o7777
_U32 = 0xFFFFFFFF
_UNSAFE_ASCII = frozenset(range(0x20)) | {0x7F}


class Refused(Exception):
    """The receiver ends the copy: `code` is an error number, `name` the entry it is about (b"" if none is known)."""

    def __init__(self, code: int, name: bytes = b"") -> None:
        super().__init__(errno.errorcode.get(code, str(code)), name)
        self.code = code
        self.name = name


class Entry:
    """A file, folder or link. Times in nanoseconds. `path` is checked by `check_path`, `target` (of a link) not yet."""

    __slots__ = ("accessed", "mode", "modified", "path", "size", "target")

    def __init__(self, path: bytes, mode: int, size: int = 0, *, accessed: int = 0, modified: int = 0, target: bytes = b"") -> None:
        self.path = path
        self.mode = mode
        self.size = size
        self.accessed = accessed
        self.modified = modified
        self.target = target

    @property
    def kind(self) -> int:
        """REGULAR, FOLDER, LINK or another type that nobody sends."""
        return self.mode & MODE_TYPE

    def encode(self) -> bytes:
        """Header, name and, of a link, its text; a file's `size` bytes follow. Times outside 32 bits become the nearest."""
        name = self.path + b"\0"
        seconds = [min(max(time // NANOSECONDS, 0), _U32) for time in (self.accessed, self.modified)]
        return HEADER.pack(
            len(name), self.mode, len(self.target) if self.kind == LINK else self.size,
            seconds[0], self.accessed % NANOSECONDS, seconds[1], self.modified % NANOSECONDS,
        ) + name + self.target


class End:
    """The sender has sent all."""


# -- names ---------------------------------------------------------------------------------------------------------------


def check_path(path: bytes, *, all_names: bool = False) -> None:
    """A relative path in its shortest form, of characters a person can read unless `all_names`. Raises Refused (EILSEQ)."""
    if not path or b"\0" in path or not (all_names or is_displayable(path)):
        raise Refused(errno.EILSEQ, path)
    for part in path.split(b"/"):        # an absolute path, "a//b" and "a/" have an empty part
        if part in (b"", b".", b".."):
            raise Refused(errno.EILSEQ, path)


def is_displayable(name: bytes) -> bool:
    """Whether a person sees what the name holds: no control, no invisible, no reordering character, no broken UTF-8."""
    if name.isascii():
        return _UNSAFE_ASCII.isdisjoint(name)
    from cloison.wire.displayable import displayable

    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return all(0x20 <= ord(character) < 0x7F or displayable(ord(character)) for character in text)


def check_link(path: bytes, target: bytes, *, all_names: bool = False, any_target: bool = False) -> None:
    """A link that stays inside the top-level folder it came in: neither at the top nor leading out. Raises Refused (ENOLINK).

    `path` has passed `check_path`. `any_target` lets it lead anywhere.
    """
    if b"\0" in target or not (all_names or is_displayable(target)):
        raise Refused(errno.EILSEQ, target)
    if any_target:
        return
    depth = path.count(b"/") + 1
    if depth < 2 or target.startswith(b"/"):
        raise Refused(errno.ENOLINK, target)
    up, seen_name = 0, False
    for part in target.split(b"/"):
        if part == b"..":
            up += 1
            if seen_name or up > depth - 2:
                raise Refused(errno.ENOLINK, target)
        elif part not in (b"", b"."):
            seen_name = True


# -- the stream ------------------------------------------------------------------------------------------------------------


class Decoder:
    """Feed it bytes as they come; take events until None ("need more"): an Entry, pieces of a file's content, End.

    Names are checked here, links' targets too. Pieces are views of what was fed: use them before feeding again. What comes
    after End is ignored. `name` is the path being worked on, for the answer; `crc` covers what has been taken.
    """

    def __init__(self, *, all_names: bool = False, any_target: bool = False) -> None:
        self.crc = 0
        self.name = b""
        self._all_names = all_names
        self._any_target = any_target
        self._fed = memoryview(b"")
        self._head = bytearray()         # of an entry: header, name and link's text as far as they have come
        self._wanted = HEADER.size       # so long must _head become
        self._left = 0                   # bytes of content still to come
        self._ended = False

    @property
    def inside_entry(self) -> bool:
        """The stream must not end here."""
        return bool(self._left or self._head)

    def feed(self, untrusted: bytes | memoryview) -> None:
        """Only after `next_event` has returned None."""
        self._fed = memoryview(untrusted)

    def next_event(self) -> Entry | memoryview | End | None:
        """Raises Refused for what the rules forbid; nothing may be fed or taken after that."""
        if self._ended:
            return None
        if self._left:
            return self._take_content()
        while len(self._head) < self._wanted:
            piece = self._take(self._wanted - len(self._head))
            if not piece:
                return None
            self._head += piece
            if len(self._head) == self._wanted and self._grow():
                self._ended = True
                self._head.clear()
                return End()
        return self._finish_entry()

    def _take(self, length: int) -> memoryview:
        piece, self._fed = self._fed[:length], self._fed[length:]
        self.crc = crc32(piece, self.crc)
        return piece

    def _take_content(self) -> memoryview | None:
        if not self._fed:
            return None
        piece = self._take(self._left)
        self._left -= len(piece)
        return piece

    def _grow(self) -> bool:
        """What stands in `_head` says how long it must become; each length is checked before it is waited for. True: the end."""
        length, mode, size, *_ = HEADER.unpack_from(self._head)
        if length == 0:
            return True
        if length > NAME_MAX:
            raise Refused(errno.ENAMETOOLONG)
        self._wanted = HEADER.size + length
        if len(self._head) >= self._wanted and mode & MODE_TYPE == LINK:
            self.name = self._path(length)
            if size > NAME_MAX:
                raise Refused(errno.ENAMETOOLONG, self.name)
            self._wanted += size
        return False

    def _path(self, length: int) -> bytes:
        return bytes(self._head[HEADER.size:HEADER.size + length]).removesuffix(b"\0")

    def _finish_entry(self) -> Entry:
        length, mode, size, *times = HEADER.unpack_from(self._head)
        self.name = path = self._path(length)
        check_path(path, all_names=self._all_names)
        if times[1] >= NANOSECONDS or times[3] >= NANOSECONDS:
            raise Refused(errno.EINVAL, path)
        entry = Entry(path, mode, size, accessed=times[0] * NANOSECONDS + times[1], modified=times[2] * NANOSECONDS + times[3])
        if entry.kind == REGULAR:
            if size > MAX_SIZE:
                raise Refused(errno.EDQUOT, path)
            self._left = size
        elif entry.kind == LINK:
            entry.target = bytes(self._head[HEADER.size + length:])
            check_link(path, entry.target, all_names=self._all_names, any_target=self._any_target)
        elif entry.kind != FOLDER or size:
            raise Refused(errno.EINVAL, path)
        self._head.clear()
        self._wanted = HEADER.size
        return entry


# -- the answer ------------------------------------------------------------------------------------------------------------


class Result:
    """What the receiver says at its end. `code` 0: all is there, and `crc` must be the sender's own. `name` is untrusted."""

    __slots__ = ("code", "crc", "name")

    def __init__(self, code: int, crc: int, name: bytes = b"") -> None:
        self.code = code
        self.crc = crc
        self.name = name

    def encode(self) -> bytes:
        name = self.name[:NAME_MAX]
        return RESULT.pack(self.code, 0, self.crc) + NAME_LENGTH.pack(len(name)) + name


ANSWER_MAX = RESULT.size + NAME_LENGTH.size + NAME_MAX + 1


def decode_result(untrusted: bytes, *, ended: bool) -> Result | None:
    """The answer, or None if there must be more of it. `ended`: no more comes; very old receivers send no name then.

    A name that claims more than NAME_MAX + 1 bytes is cut there.
    """
    head = RESULT.size + NAME_LENGTH.size
    if len(untrusted) < (RESULT.size if ended else head):
        return None
    code, _, checksum = RESULT.unpack_from(untrusted)
    if len(untrusted) < head:
        return Result(code, checksum)
    length = min(NAME_LENGTH.unpack_from(untrusted, RESULT.size)[0], NAME_MAX + 1)
    if len(untrusted) < head + length and not ended:
        return None
    return Result(code, checksum, untrusted[head:head + length])


def printable(untrusted: bytes) -> str:
    """A name from the other side as a person may see it: all but plain ASCII becomes `_`, and `"` too, which quotes it."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F and byte != 0x22 else "_" for byte in untrusted)
