"""How a caller ends the program that serves it: by a signal it sends, or by hanging up.

A program of the caller's own words (a command line, qubes.VMShell, qubes.VMExec) belongs to its caller: when that is gone, the
program's process group gets SIGHUP, and SIGKILL after a grace. A service of the qube's own is not interrupted by a hang-up, for
what it does half may be worse than what it does whole; it sees the end of its input, as in Qubes OS, where no program is signalled.
A signal is an EXIT_CODE message of the caller, 128 + its number, as if the caller had ended by it: agents that don't know it drop
it (reference/qrexec.md 7.3). The host may signal services too. What has left the process group (`setsid`) is out of reach.

The group's number stays ours for as long as it may be signalled: its leader is not reaped before.
"""
from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import subprocess
from collections.abc import Callable
from typing import Final

from cloison.runtime.children import when_ended
from cloison.wire.qrexec import Command

GRACE: Final = 3.0                       # s between SIGHUP and SIGKILL
SIGNALLED: Final = 128                   # an exit status above it names a signal
HOST: Final = 0
OWN_WORDS: Final = frozenset(f"qubes.VM{name}" for name in ("Shell", "RootShell", "Exec", "RootExec", "ExecGUI"))


class Reach(enum.Flag):
    """What a caller can do to the program that serves it."""

    NOTHING = 0
    SIGNAL = enum.auto()
    HANG_UP = enum.auto()


def reach(command: Command, domain: int) -> Reach:
    """Of whoever is at the other end, in that domain."""
    if not command.service or command.service in OWN_WORDS:
        return Reach.SIGNAL | Reach.HANG_UP
    return Reach.SIGNAL if domain == HOST else Reach.NOTHING


def nothing() -> Reach:
    return Reach.NOTHING


class Group:
    """A program that leads a process group. `on_exit` is called once with its status; the group may outlive it."""

    def __init__(
        self, process: subprocess.Popen[bytes], on_exit: Callable[[int], None], reach: Callable[[], Reach] = nothing,
    ) -> None:
        """`reach` is asked when the caller acts. Raises OSError."""
        self._process, self._on_exit, self._reach = process, on_exit, reach
        self._loop = asyncio.get_running_loop()
        self._exited = self._released = False
        when_ended(process.pid, self._ended)

    def _ended(self) -> None:
        self._exited = True
        found = os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        assert found is not None
        status = found.si_status if found.si_code == os.CLD_EXITED else SIGNALLED + found.si_status
        self._reap()
        self._on_exit(status)

    def _reap(self) -> None:
        if self._exited and self._released:
            self._process.wait()

    def caller_says(self, status: int) -> None:
        """An EXIT_CODE of the caller's."""
        if status - SIGNALLED in signal.valid_signals() and Reach.SIGNAL in self._reach():
            self._signal(status - SIGNALLED)

    def hung_up(self) -> None:
        """The caller is gone. `release` is not needed any more."""
        if self._released or Reach.HANG_UP not in self._reach():
            self.release()
            return
        self._signal(signal.SIGHUP)
        self._signal(signal.SIGCONT)     # for one that was stopped
        self._loop.call_later(GRACE, self._kill)

    def _kill(self) -> None:
        self._signal(signal.SIGKILL)
        self.release()

    def _signal(self, number: int) -> None:
        if not self._released:
            with contextlib.suppress(ProcessLookupError, PermissionError):   # who changed users is out of a fork server's reach
                os.killpg(self._process.pid, number)

    def release(self) -> None:
        """The call is over in good order: whatever is left of the group goes on."""
        self._released = True
        self._reap()
