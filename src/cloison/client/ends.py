"""Where the bytes of a call go to and come from, on our side: file descriptors, or memory that is bounded.

A sink that is `blocked` stops its call's channel until it isn't; that is all the back-pressure there is. Bytes of the qube are
`untrusted` until they leave through a `Sink`, which replaces what could drive a terminal, or are handed to the caller as such.
"""
from __future__ import annotations

import os
import stat

from cloison.client.failures import TooMuchOutput
from cloison.wire import qrexec as wire

STREAM = 1 << 18                         # bytes of a stream that wait for their reader here
TAIL = 1 << 16                           # of what is kept only in case somebody asks
_SAFE_WRITE = 4096                       # a pipe that polls writable takes this much without blocking (PIPE_BUF)

# Every byte but printable ASCII, TAB, LF, CR, BS and BEL becomes `_`: no escape sequence reaches a terminal (QSB-013b).
_PRINTABLE = bytes(range(0x20, 0x7F)) + b"\t\n\r\b\a"
TERMINAL_TABLE = bytes(byte if byte in _PRINTABLE else 0x5F for byte in range(256))


class Sink:
    """A descriptor. At most one chunk waits here; while it does, `blocked`.

    Writes never block on a pipe. The inherited description is left blocking, since the flag would hit every process that
    shares it; a pipe is opened anew instead, and what can't be (a socket, a terminal) gets small writes when it polls ready.
    """

    def __init__(self, fd: int, clean: bool) -> None:
        self.fd = fd
        self._clean = clean
        self._pending = memoryview(b"")
        mode = os.fstat(fd).st_mode
        self._own = _open_nonblocking(fd) if stat.S_ISFIFO(mode) else None
        self._is_pipe = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
        self._limit = wire.MAX_CHUNK if self._own is not None or stat.S_ISREG(mode) else _SAFE_WRITE

    @property
    def target(self) -> int:
        """The descriptor to poll."""
        return self.fd if self._own is None else self._own

    @property
    def blocked(self) -> bool:
        return bool(self._pending)

    @property
    def eager(self) -> bool:
        """A write can be tried without polling first."""
        return self._limit != _SAFE_WRITE

    def put(self, untrusted: bytes) -> None:
        """Only when not `blocked`; `flush` writes it."""
        self._pending = memoryview(untrusted.translate(TERMINAL_TABLE) if self._clean else untrusted)

    def flush(self) -> None:
        """Write what can be written now. Raises BrokenPipeError if nobody reads, OSError for a full disk."""
        try:
            while self._pending:
                self._pending = self._pending[os.write(self.target, self._pending[:self._limit]):]
                if not self.eager:
                    return               # poll again: a second write could block
        except BlockingIOError:
            pass

    def finish(self) -> None:
        """The qube has ended this stream: let a reader of the pipe see it."""
        self.close()
        if self._is_pipe:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self.fd, inheritable=False)
            os.close(null)

    def close(self) -> None:
        """Lets go of what was opened here; what still waits is lost."""
        self._pending = memoryview(b"")
        if self._own is not None:
            os.close(self._own)
            self._own = None


def _open_nonblocking(fd: int) -> int | None:
    """The same pipe through a description of our own, or None if the system doesn't let us."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None


class Memory:
    """A sink that keeps what comes. `ended`: no more comes."""

    target, eager = None, True

    def __init__(self) -> None:
        self.untrusted = bytearray()
        self.ended = False

    @property
    def blocked(self) -> bool:
        return False

    def put(self, untrusted: bytes) -> None:
        self.untrusted += untrusted

    def flush(self) -> None:
        """There is nothing to do."""

    def finish(self) -> None:
        self.ended = True

    def close(self) -> None:
        self.ended = True


class Whole(Memory):
    """All of a stream, at most `limit` bytes."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self._limit = limit

    def put(self, untrusted: bytes) -> None:
        """Raises TooMuchOutput."""
        if len(self.untrusted) + len(untrusted) > self._limit:
            raise TooMuchOutput(self._limit)
        self.untrusted += untrusted


class Tail(Memory):
    """The end of a stream. Never in the way."""

    def put(self, untrusted: bytes) -> None:
        self.untrusted += untrusted
        del self.untrusted[:-TAIL]


class Queue(Memory):
    """A stream for a reader, who may be slow: above STREAM bytes the qube waits. `streams`: so many end in it."""

    def __init__(self, streams: int = 1) -> None:
        super().__init__()
        self._streams = streams

    def finish(self) -> None:
        self._streams -= 1
        self.ended = self._streams == 0

    @property
    def blocked(self) -> bool:
        return len(self.untrusted) >= STREAM

    def take(self, size: int) -> bytes:
        data = bytes(self.untrusted[:size])
        del self.untrusted[:size]
        return data


class File(Memory):
    """A regular file of ours, at most `limit` bytes of it; nothing is kept in memory."""

    def __init__(self, fd: int, limit: int) -> None:
        super().__init__()
        self._fd, self._limit, self.size = fd, limit, 0

    def put(self, untrusted: bytes) -> None:
        """Raises TooMuchOutput, OSError for a full disk."""
        self.size += len(untrusted)
        if self.size > self._limit:
            raise TooMuchOutput(self._limit)
        rest = memoryview(untrusted)
        while rest:
            rest = rest[os.write(self._fd, rest):]


class Source:
    """Input out of memory. `ready`: something, or the end, can be read."""

    def __init__(self, data: bytes = b"", *, ended: bool = False) -> None:
        self._data, self._ended = memoryview(data), ended

    @property
    def ready(self) -> bool:
        return bool(self._data) or self._ended

    def put(self, data: bytes) -> None:
        """Only when what was put has left."""
        self._data = memoryview(data)

    @property
    def empty(self) -> bool:
        return not self._data

    def end(self) -> None:
        self._ended = True

    def read(self, limit: int) -> bytes:
        """Empty: the end."""
        data, self._data = bytes(self._data[:limit]), self._data[limit:]
        return data


class FileSource(Source):
    """Input out of a regular file, which is always ready."""

    def __init__(self, fd: int) -> None:
        super().__init__(ended=True)
        self._fd = fd

    def read(self, limit: int) -> bytes:
        """Raises OSError."""
        return os.read(self._fd, limit)
