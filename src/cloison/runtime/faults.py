"""A hook for tests that walk every step of an operation and break it there.

`CLOISON_FAULT=NAME` kills this process with SIGKILL at the point of that name; `NAME=enospc` and `NAME=eio` raise what
a full or a broken disk would. Unset (always, outside tests) a point costs one comparison.
"""
from __future__ import annotations

import errno
import os
import signal

_FAULT = os.environ.get("CLOISON_FAULT", "")


def point(name: str) -> None:
    """Declare a place between two steps. Raises OSError for a disk fault asked for here; may not return."""
    if not _FAULT or not _FAULT.startswith(name):
        return
    if name == _FAULT:
        os.kill(os.getpid(), signal.SIGKILL)
    for word, number in (("enospc", errno.ENOSPC), ("eio", errno.EIO)):
        if f"{name}={word}" == _FAULT:
            raise OSError(number, os.strerror(number))
