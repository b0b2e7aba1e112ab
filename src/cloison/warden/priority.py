"""The processor's share of a warden, its QEMU and nothing else, among other sessions: Linux's autogroup, made by `setsid`.

Anybody may lower the priority of a session of his own and take that back, up to ten times a second, which holds for all sessions
together. Where processes are in control groups for the processor there are no autogroups, and this does nothing.
"""
from __future__ import annotations

import asyncio
import os

AUTOGROUP = "/proc/self/autogroup"
NORMAL, LOW = 0, 15                      # as nice values: a thirtieth of what others get, if they want it
AGAIN = 0.15                             # s after which a refused change is tried once more


class Priority:
    """For a process that leads its session."""

    def __init__(self, path: str = AUTOGROUP) -> None:
        self._path = path
        self._loop = asyncio.get_running_loop()
        self._until = 0.0
        self._end: asyncio.TimerHandle | None = None     # set while it is low

    def lower(self, seconds: float) -> None:
        """For so long from now, or as long as said before."""
        self._until = max(self._until, self._loop.time() + seconds)
        if self._end is None and self._set(LOW):
            self._end = self._loop.call_at(self._until, self._over)

    def close(self) -> None:
        """Nothing changes any more."""
        if self._end is not None:
            self._end.cancel()

    def _over(self) -> None:
        if self._loop.time() < self._until:
            self._end = self._loop.call_at(self._until, self._over)
        elif self._set(NORMAL):
            self._end = None
        else:
            self._end = self._loop.call_later(AGAIN, self._over)

    def _set(self, nice: int) -> bool:
        """False if it was too early for another change, or there are no autogroups."""
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            os.write(fd, str(nice).encode())
        except OSError:
            return False
        finally:
            os.close(fd)
        return True
