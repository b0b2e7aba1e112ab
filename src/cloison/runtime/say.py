"""A line for whoever reads this program's log: said after what it tells of was done, and whatever becomes of the log.

A full disk, a closed standard error, a pipe that nobody reads: none of them may fail or hold up an action, least of all one
against a guest. And a guest decides how often some lines are said: `pace` bounds that.
"""
from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

from cloison.runtime.log_file import LogFile

MAX_RECORD = 4000         # bytes of one record: a pipe that takes anything takes so many at once
_STDERR = 2
_CONTINUED = "\n    "     # further lines of a record, as those of a traceback, can't be taken for records
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(0x20), 0x7F) if code != 0x0A}


def harmless(untrusted: str) -> str:
    """The text with escapes for all that could drive a terminal, and its further lines set in."""
    return _CONTINUED.join(map(_escaped, untrusted.rstrip("\n").split("\n")))


def _escaped(line: str) -> str:
    return line.translate(_CONTROLS).encode("ascii", "backslashreplace").decode("ascii")


class Pace:
    """`burst` records at once, then `rate` a second. How many were left out is told with the next one."""

    def __init__(self, burst: int, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._rate, self._clock = burst, rate, clock
        self._room, self._since = float(burst), clock()
        self._left_out = 0

    def allowed(self) -> str | None:
        """What goes before the next record, mostly nothing; None: leave it out."""
        now = self._clock()
        self._room = min(self._burst, self._room + (now - self._since) * self._rate)
        self._since = now
        if self._room < 1:
            self._left_out += 1
            return None
        self._room -= 1
        left_out, self._left_out = self._left_out, 0
        return f"({left_out} records were left out: too many at once)\n" if left_out else ""


class _Output:
    file: LogFile | None = None
    pace: Pace | None = None
    stamped = False


def say(untrusted: str) -> None:
    """One record, printable. Never raises, never waits."""
    before = "" if _Output.pace is None else _Output.pace.allowed()
    if before is None:
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S ") if _Output.stamped else ""
    record = f"{before}{when}{harmless(untrusted)[:MAX_RECORD - 100]}\n".encode("ascii")
    if _Output.file is not None:
        _Output.file.write(record)
    else:
        _to_stderr(record)


def say_in(path: str, untrusted: str) -> None:
    """One stamped record in another log than this program's own. Never raises, never waits."""
    file = LogFile(path)
    file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {harmless(untrusted)[:MAX_RECORD - 100]}\n".encode("ascii"))
    file.close()


def _to_stderr(record: bytes) -> None:
    try:
        poll = select.poll()
        poll.register(_STDERR, select.POLLOUT)
        if poll.poll(0):
            os.write(_STDERR, record)
    except OSError:
        return


def say_to(file: LogFile | None, pace: Pace | None = None, *, stamped: bool = False) -> None:
    """From now on, of the whole process. None: standard error. `stamped`: each record says when it was."""
    _Output.file, _Output.pace, _Output.stamped = file, pace, stamped


def own_log() -> LogFile | None:
    """The log that this process was started with: its standard error, if that is a file with a name."""
    try:
        path, there = os.readlink(f"/proc/self/fd/{_STDERR}"), os.fstat(_STDERR)
        if os.path.samestat(os.lstat(path), there) and os.path.isfile(path):
            return LogFile(path, stdio=True)
    except OSError:
        pass
    return None
