"""Programs that the agent starts for itself and does not wait for."""
from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence


def spawn(argv: Sequence[str]) -> None:
    """Start a program by full path, in a session of its own; it is reaped when it ends. Raises OSError."""
    pid = os.posix_spawn(argv[0], list(argv), os.environ, setsid=True)
    loop = asyncio.get_running_loop()
    pidfd = os.pidfd_open(pid)

    def reap() -> None:
        loop.remove_reader(pidfd)
        os.close(pidfd)
        os.waitpid(pid, 0)

    loop.add_reader(pidfd, reap)
