"""Noticing the end of a child process in this thread's event loop, without a thread and without SIGCHLD."""
from __future__ import annotations

import asyncio
import os
from collections.abc import Callable


def when_ended(pid: int, ended: Callable[[], None]) -> None:
    """Call `ended` once, when that child has exited; it must wait for it. Raises OSError."""
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)

    def notice() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        ended()

    loop.add_reader(pidfd, notice)
