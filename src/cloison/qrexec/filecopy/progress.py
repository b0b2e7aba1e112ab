"""How far a copy is, for a person on a terminal or for a program that draws it."""
from __future__ import annotations

import os
from time import monotonic

_PAUSE = 0.2                             # seconds between two lines
_STEP = 15 << 20                         # bytes between two numbers for a program
_MIB = 1 << 20


class Console:
    """`sent 12.0 of 100.0 MiB, 85.3 MiB/s` on standard error: a line that changes; if that is no terminal, its last state.

    Less than a MiB in all is told in KiB.
    """

    def __init__(self, total: int | None, fd: int = 2) -> None:
        self._total = total
        self._fd = fd
        self._live = os.isatty(fd)
        self._begin = self._shown = monotonic()

    def __call__(self, sent: int) -> None:
        now = monotonic()
        if self._live and now - self._shown >= _PAUSE:
            self._shown = now
            self._write(sent, now, "\r")

    def done(self, sent: int) -> None:
        """The last line."""
        self._write(sent, monotonic(), "\n")

    def _write(self, sent: int, now: float, end: str) -> None:
        unit, size = ("MiB", _MIB) if max(sent, self._total or 0) >= _MIB else ("KiB", 1 << 10)
        total = "" if self._total is None else f" of {self._total / size:.1f}"
        rate = sent / size / max(now - self._begin, 1e-6)
        os.write(self._fd, f"sent {sent / size:.1f}{total} {unit}, {rate:.1f} {unit}/s  {end}".encode())


class Numbers:
    """The count of bytes, a line each, on a descriptor that a program reads. If it reads no more, it wants the copy to end."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._shown = -_STEP

    def __call__(self, sent: int) -> None:
        if sent - self._shown >= _STEP:
            self.done(sent)

    def done(self, sent: int) -> None:
        self._shown = sent
        try:
            os.write(self._fd, b"%d\n" % sent)
        except BrokenPipeError:
            raise SystemExit(32) from None


class Silent:
    """Nothing is shown."""

    def __call__(self, sent: int) -> None:
        """Nothing."""

    def done(self, sent: int) -> None:
        """Nothing."""


Progress = Console | Numbers | Silent


def from_environment() -> Progress:
    """As PROGRESS_TYPE, FILECOPY_TOTAL_BYTES and SAVED_FD_1 say (reference/qrexec.md 21.4)."""
    kind, total, fd = (os.environ.get(name, "") for name in ("PROGRESS_TYPE", "FILECOPY_TOTAL_BYTES", "SAVED_FD_1"))
    if kind == "console":
        return Console(int(total) if total.isdecimal() else None)
    if kind == "gui" and fd.isdecimal():
        return Numbers(int(fd))
    return Silent()
