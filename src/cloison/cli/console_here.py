"""A qube's serial console in the terminal that one sits at, for `qvm-console-dispvm --here`.

What the qube writes becomes plain text first: no colours, no cursor, no title, nothing that could drive this terminal (QSB-013b).
Keys go to the qube as they are typed, but for the one that leaves.
"""
from __future__ import annotations

import contextlib
import enum
import os
import select
import termios
import tty
from collections.abc import Iterator

LEAVE = b"\x1d"                      # Ctrl-]
_CHUNK = 65536
_KEPT = frozenset(b"\b\t\n\r") | frozenset(range(0x20, 0x7F))


class _State(enum.Enum):
    """Text, or inside of a control sequence: just after ESC; up to its final letter (CSI); up to BEL or ESC (a string)."""

    TEXT = enum.auto()
    ESCAPE = enum.auto()
    SEQUENCE = enum.auto()
    STRING = enum.auto()


class Plain:
    """Bytes in, plain text out: control sequences are left out whole, wherever they were cut; other odd bytes become `_`."""

    def __init__(self) -> None:
        self._state = _State.TEXT

    def feed(self, untrusted: bytes) -> bytes:
        return b"".join(self._next(byte) for byte in untrusted)

    def _next(self, byte: int) -> bytes:
        if byte == 0x1B:
            self._state = _State.ESCAPE
        elif self._state is _State.TEXT:
            return bytes((byte,)) if byte in _KEPT else b"" if byte == 0x07 else b"_"
        elif self._state is _State.ESCAPE:
            self._state = {0x5B: _State.SEQUENCE, 0x5D: _State.STRING, 0x50: _State.STRING}.get(byte, _State.TEXT)
        elif (self._state is _State.SEQUENCE and 0x40 <= byte <= 0x7E) or (self._state is _State.STRING and byte == 0x07):
            self._state = _State.TEXT
        return b""


def join(console: int, stdin: int = 0, stdout: int = 1) -> None:
    """Until LEAVE is typed, the input ends, or the qube is gone. `console`: the terminal that qubesd named."""
    plain = Plain()
    poll = select.poll()
    for fd in (console, stdin):
        poll.register(fd, select.POLLIN)
    with _keys(stdin), contextlib.suppress(OSError):     # the console is gone, or nobody reads what comes out
        while True:
            for fd, _ in poll.poll():
                data = os.read(fd, _CHUNK)
                if fd == console:
                    _write_all(stdout, plain.feed(data))
                else:
                    typed, left, _ = data.partition(LEAVE)
                    _write_all(console, typed)
                if not data or (fd == stdin and left):
                    return


@contextlib.contextmanager
def _keys(stdin: int) -> Iterator[None]:
    """Each key at once, and to the qube: also Ctrl-C. As before in the end."""
    if not os.isatty(stdin):
        yield
        return
    before = termios.tcgetattr(stdin)
    tty.setraw(stdin, termios.TCSANOW)
    try:
        yield
    finally:
        termios.tcsetattr(stdin, termios.TCSADRAIN, before)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]
