"""Long-lived programs that every clone of one snapshot has in common are executed anew, some time after the start.

Their addresses and their stack canaries are the snapshot's, so what somebody finds out in one qube he knows in all. It costs
seconds of a processor and many megabytes under emulation, so it is a service (fresh-daemons), which the host has on with KVM.
Not in the list: dbus-daemon, whose restart would cut everybody's connection to it; the agent and the holders of sessions, whose end
would end calls; the kernel, which can't be.
"""
from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence

from cloison.guest import background

SYSTEMCTL = "/usr/bin/systemctl"
COMMANDS = (
    (SYSTEMCTL, "daemon-reexec"),
    (SYSTEMCTL, "restart", "systemd-journald.service"),
    (SYSTEMCTL, "restart", "systemd-udevd.service"),
    (SYSTEMCTL, "restart", "systemd-logind.service"),
)
WAIT, SPREAD = 60.0, 60                  # s from the start to the first, and at most so many more: qubes start in crowds
PAUSE = 2.0                              # s between two


def delay() -> float:
    return WAIT + os.urandom(1)[0] % SPREAD


class Refresh:
    """`begin` it once. `later(seconds, then)` and `run(argv, then)` are what a test gives instead of a clock and processes."""

    def __init__(
        self, later: Callable[[float, Callable[[], None]], object] | None = None,
        run: Callable[[Sequence[str], Callable[[], None]], None] = background.spawn,
    ) -> None:
        self._later = later or asyncio.get_running_loop().call_later
        self._run = run
        self._left = list(COMMANDS)

    def begin(self) -> None:
        self._later(delay(), self._next)

    def _next(self) -> None:
        if self._left:
            self._run(self._left.pop(0), self._rest)

    def _rest(self) -> None:
        self._later(PAUSE, self._next)
