"""The sender of a file copy: walks folders, writes the stream, watches for the receiver's answer (reference/qrexec.md 21).

The receiver may answer at any time (its disk is full, a name exists) and reads no further then; so both directions are watched
whenever a write would wait. What the receiver says is hostile too: bounded, and made harmless before a person sees it.
"""
from __future__ import annotations

import errno
import os
import select
from zlib import crc32

from cloison.wire import filecopy as wire

TYPE_CHECKING = False                    # what types need costs a start under emulation
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Protocol

    class Content(Protocol):
        """What a file's bytes are read from."""

        def readinto(self, buffer: memoryview, /) -> int | None: ...

BUFFER = 1 << 20
_SMALL = 1 << 16                         # shorter pieces are gathered
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class CopyFailed(Exception):
    """The copy is not whole. One sentence; `hint` is what can be done about it."""

    def __init__(self, sentence: str, hint: str = "") -> None:
        super().__init__(sentence)
        self.hint = hint


class PeerGone(CopyFailed):
    """The receiver hung up without an answer: what carried the call says why."""


def quote(name: bytes) -> str:
    """A name of ours for a person: in quotes, with what is unsafe to show escaped."""
    if wire.is_displayable(name):
        return '"' + name.decode("utf-8", "replace") + '"'
    return '"' + "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in name) + '"'


# -- walking -------------------------------------------------------------------------------------------------------------


def split(argument: bytes) -> tuple[bytes, bytes]:
    """The folder to send from, and the name below it, of a path as a person gives it. "." and ".." mean that folder's own name."""
    path = argument.rstrip(b"/") or b"/"
    if path.rpartition(b"/")[2] in (b"", b".", b".."):
        path = os.path.realpath(path)
    folder, _, name = path.rpartition(b"/")
    if not name:
        raise CopyFailed(f"{quote(argument)} has no name of its own to be sent under")
    return (folder or b"/") if b"/" in path else b".", name


def open_folder(argument: bytes) -> tuple[int, bytes]:
    """As `split`, with the folder opened. Raises CopyFailed."""
    folder, name = split(argument)
    try:
        return os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC), name
    except OSError as error:
        raise CopyFailed(f"{quote(folder)}: {error.strerror}") from error


def walk(parent: int, name: bytes, *, ignore_links: bool = False) -> Iterator[tuple[bytes, os.stat_result]]:
    """All below `name`, depth first; folders come before their content and again after it. Raises CopyFailed."""
    waiting: list[tuple[bytes, os.stat_result | None]] = [(name, None)]
    while waiting:
        path, folder = waiting.pop()
        if folder is not None:
            yield path, folder
            continue
        try:
            status = os.lstat(path, dir_fd=parent)
            kind = status.st_mode & wire.MODE_TYPE
            if kind == wire.LINK and ignore_links:
                continue
            yield path, status
            if kind == wire.FOLDER:
                waiting.append((path, status))
                waiting.extend((path + b"/" + entry, None) for entry in reversed(_names(parent, path)))
        except OSError as error:
            raise CopyFailed(f"{quote(path)}: {error.strerror}") from error


def _names(parent: int, path: bytes) -> list[bytes]:
    fd = os.open(path, _OPEN | os.O_DIRECTORY, dir_fd=parent)
    try:
        return [os.fsencode(name) for name in os.listdir(fd)]
    finally:
        os.close(fd)


class Survey:
    """What is about to be sent. `size`: bytes of content; `unsafe`: the first few names that only `allow-all-names` lets through;
    `skipped`: what is no file, folder or link, and is not sent.
    """

    SHOWN = 5

    def __init__(self) -> None:
        self.size = 0
        self.unsafe: list[bytes] = []
        self.skipped: list[bytes] = []

    def look(self, argument: bytes, *, ignore_links: bool = False) -> None:
        """Add what this argument stands for. Raises CopyFailed for what can't be sent."""
        parent, name = open_folder(argument)
        try:
            for path, status in walk(parent, name, ignore_links=ignore_links):
                try:
                    self._note(parent, path, status)
                except OSError as error:
                    raise CopyFailed(f"{quote(path)}: {error.strerror}") from error
        finally:
            os.close(parent)

    def _note(self, parent: int, path: bytes, status: os.stat_result) -> None:
        kind, target = status.st_mode & wire.MODE_TYPE, b""
        if kind == wire.REGULAR:
            self.size += status.st_size
        elif kind == wire.LINK:
            target = os.readlink(path, dir_fd=parent)
            _check_link(path, target)
        elif kind != wire.FOLDER:
            self.skipped.append(path)
            return
        for text in (path.rpartition(b"/")[2], target):
            if len(self.unsafe) < self.SHOWN and not wire.is_displayable(text) and text not in self.unsafe:
                self.unsafe.append(text)


def _check_link(path: bytes, target: bytes) -> None:
    try:
        wire.check_link(path, target, all_names=True)
    except wire.Refused:
        where = "is no part of a folder that is sent" if b"/" not in path else "may lead out of what is sent"
        raise CopyFailed(f"link {quote(path)} to {quote(target)} {where}, so the receiver would refuse it",
                         "Copy what it points at, or use --ignore-symlinks.") from None


# -- sending ---------------------------------------------------------------------------------------------------------------


class Sender:
    """Writes one stream to `output`, reads the answer from `answers` (the same socket, or two pipes), both made non-blocking.

    `progress` hears the number of content bytes sent so far, which `sent` is.
    """

    def __init__(self, output: int, answers: int, progress: Callable[[int], None] | None = None) -> None:
        os.set_blocking(output, False)
        os.set_blocking(answers, False)
        self._output = output
        self._answers = answers
        self._progress = progress
        self._buffer = memoryview(bytearray(BUFFER))
        self._gathered = bytearray()
        self._crc = 0
        self.sent = 0
        self._poll = select.poll()
        self._poll.register(answers, select.POLLIN)
        if output != answers:
            self._poll.register(output, select.POLLOUT)

    def send(self, argument: bytes, *, ignore_links: bool = False) -> None:
        """Send a file or folder, named as a person names it. Raises CopyFailed."""
        parent, name = open_folder(argument)
        try:
            for path, status in walk(parent, name, ignore_links=ignore_links):
                try:
                    self._send_one(parent, path, status)
                except OSError as error:     # of this file, which may lie deep below what the person named
                    raise CopyFailed(f"{quote(path)}: {error.strerror}") from error
        finally:
            os.close(parent)

    def finish(self) -> None:
        """Say that this was all, and wait until the receiver has it on its disk. Raises CopyFailed."""
        self.put(wire.END)
        self._flush()
        self._take_answer()

    def _send_one(self, parent: int, path: bytes, status: os.stat_result) -> None:
        kind = status.st_mode & wire.MODE_TYPE
        if kind == wire.REGULAR:
            self._send_file(parent, path)
        elif kind in (wire.FOLDER, wire.LINK):
            target = os.readlink(path, dir_fd=parent) if kind == wire.LINK else b""
            self.put(_entry(path, status, target).encode())

    def _send_file(self, parent: int, path: bytes) -> None:
        fd = os.open(path, _OPEN, dir_fd=parent)
        with open(fd, "rb", buffering=0) as file:
            entry = _entry(path, os.fstat(fd))
            if entry.kind != wire.REGULAR:
                raise CopyFailed(f"{quote(path)} was replaced while it was copied")
            self.put_file(entry, file)

    def put_file(self, entry: wire.Entry, content: Content) -> None:
        """A file with its content, of which `entry.size` bytes are read. Raises CopyFailed, also if there are fewer."""
        self.put(entry.encode())
        left = entry.size
        while left:
            length = content.readinto(self._buffer[:left])
            if not length:
                raise CopyFailed(f"{quote(entry.path)} became shorter while it was copied")
            self.put(self._buffer[:length])
            left -= length
            self.sent += length
            if self._progress:
                self._progress(self.sent)

    def put(self, piece: bytes | memoryview) -> None:
        """A piece of the stream: an encoded entry. Raises CopyFailed."""
        self._crc = crc32(piece, self._crc)
        if len(piece) < _SMALL:
            self._gathered += piece
            if len(self._gathered) >= _SMALL:
                self._flush()
            return
        self._flush()
        self._write(memoryview(piece))

    def _flush(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._write(memoryview(gathered))

    def _write(self, piece: memoryview) -> None:
        while piece:
            self._wait(select.POLLOUT)
            try:
                piece = piece[os.write(self._output, piece):]
            except BlockingIOError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                self._take_answer()      # it says why
                raise PeerGone("the receiver took no more") from None

    def _wait(self, wanted: int) -> None:
        """Until the output takes more. An answer that comes before the end is bad news. Raises CopyFailed."""
        if self._output == self._answers:
            self._poll.modify(self._answers, select.POLLIN | wanted)
        events = dict(self._poll.poll())
        if events.get(self._answers, 0) & (select.POLLIN | select.POLLHUP):
            self._take_answer()
            raise CopyFailed("the receiver ended before everything was sent")

    def _take_answer(self) -> None:
        """Read the answer to its end and judge it. Raises CopyFailed, or PeerGone if none comes."""
        untrusted = bytearray()
        result, ended = None, False
        os.set_blocking(self._answers, True)
        while result is None and not ended:
            try:
                piece = os.read(self._answers, wire.ANSWER_MAX)
            except ConnectionResetError:
                piece = b""
            untrusted += piece
            ended = not piece
            result = wire.decode_result(bytes(untrusted), ended=ended)
        if result is None:
            raise PeerGone("the receiver ended without an answer")
        if result.code:
            raise _failure(result)
        if result.crc != self._crc:
            raise CopyFailed("what has arrived is not what was sent: the checksums differ")


def _entry(path: bytes, status: os.stat_result, target: bytes = b"") -> wire.Entry:
    kind = status.st_mode & wire.MODE_TYPE
    if len(path) >= wire.NAME_MAX:
        raise CopyFailed(f"{quote(path[:60])}... is too long a path to be copied")
    return wire.Entry(path, status.st_mode, status.st_size if kind == wire.REGULAR else 0,
                      accessed=status.st_atime_ns, modified=status.st_mtime_ns, target=target)


def _failure(result: wire.Result) -> CopyFailed:
    name = f'"{wire.printable(result.name)}"'
    if result.code == errno.EEXIST:
        return CopyFailed(f"{name} exists already in the receiver's QubesIncoming", "Nothing is overwritten: move it away there.")
    if result.code == errno.EILSEQ:
        return CopyFailed(f"the receiver refuses a character of a name, which looks like {name}",
                          "Service qubes.Filecopy+allow-all-names allows it, if the policy does.")
    if result.code == errno.ENOLINK:
        return CopyFailed(f"the receiver refuses a link that may lead out of what was sent, near {name}",
                          "Copy what it points at, or use --ignore-symlinks.")
    if result.code == errno.EINVAL:
        return CopyFailed(f"the receiver does not take what was sent, near {name}")
    if result.code in (errno.EREMOTEIO, wire.ENDED_EARLY):
        return CopyFailed(f"the receiver got no end of what was sent, after {name}")
    reason = os.strerror(result.code) if 0 < result.code < 4096 else f"error {result.code}"
    return CopyFailed(f"the receiver failed: {reason}, at {name}")


def send_all(sender: Sender, arguments: Sequence[bytes], *, ignore_links: bool = False) -> None:
    """The whole copy. Raises CopyFailed."""
    for argument in arguments:
        sender.send(argument, ignore_links=ignore_links)
    sender.finish()
