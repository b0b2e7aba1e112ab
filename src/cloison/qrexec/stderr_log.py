"""What services complain of, in the log of the system that serves them (reference/qrexec.md 9.5).

Straight to the log's socket: a program of its own for each call would cost as much as the service. What a service writes is its
caller's doing in part, so here is the one place where it is made harmless: printable ASCII, one record a line, of bounded length.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket

SOCKET = "/dev/log"
MAX_LINE = 1024
_NOTICE = b"<13>"                        # facility user, severity notice
_TABLE = bytes(byte if 0x20 <= byte < 0x7F or byte == 0x0A else 0x5F for byte in range(256))


class Log:
    """One service's lines, under its tag. Never raises and never waits: a log that takes no more loses lines."""

    def __init__(self, tag: str, path: str = SOCKET) -> None:
        self._tag = tag.encode("ascii", "replace").translate(_TABLE).replace(b"\n", b"_")[:256]
        self._path = path
        self._line = b""
        self._stream: socket.socket | None = None

    def write(self, untrusted: bytes) -> None:
        """Nothing: the end, so that the last line needs no newline."""
        *lines, self._line = (self._line + untrusted.translate(_TABLE)).split(b"\n")
        if not untrusted or len(self._line) > MAX_LINE:
            lines.append(self._line)
            self._line = b""
        for line in lines:
            if line:
                self._put(_NOTICE + self._tag + b": " + line[:MAX_LINE])
        if not untrusted and self._stream is not None:
            self._stream.close()
            self._stream = None

    def _put(self, record: bytes) -> None:
        if self._stream is None:
            self._stream = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        with contextlib.suppress(OSError):
            self._stream.sendto(record, self._path)


def follow(fd: int, log: Log | None) -> None:
    """Of a program that nobody listens to: what it complains of still goes to the log, or nowhere. The descriptor is taken over."""
    if log is None:
        os.close(fd)
        return
    loop, lines = asyncio.get_running_loop(), log

    def complaint() -> None:
        with contextlib.suppress(BlockingIOError):
            untrusted = os.read(fd, 4096)
            lines.write(untrusted)
            if not untrusted:
                loop.remove_reader(fd)
                os.close(fd)

    loop.add_reader(fd, complaint)
