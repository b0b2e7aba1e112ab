"""What the daemons of a session have in common: how each begins, and until when it runs."""
from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal

from cloison.runtime.logs import log_to_own_file
from cloison.runtime.paths import Paths, leave_folder
from cloison.runtime.spawn import inherited


def begin() -> Paths:
    """Log to where standard error goes, and hold on to nothing of whoever started it. Raises HostError, OSError.

    Called first, before anything is opened: whatever is open by then is somebody else's.
    """
    for fd in inherited():
        with contextlib.suppress(OSError):      # the listing's own
            os.close(fd)
    log_to_own_file()
    os.umask(0o077)
    _allow_many_files()
    leave_folder()
    paths = Paths.from_environment()
    paths.ensure()
    return paths


def _allow_many_files() -> None:
    """As many open files as are allowed: callers and listeners take descriptors, and the usual soft limit is far below."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def told_to_end() -> asyncio.Event:
    """Set when SIGTERM or SIGINT comes, which from now on do no more than that."""
    loop, end = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end.set)
    return end
