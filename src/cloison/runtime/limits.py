"""Limits of this process."""
from __future__ import annotations

import resource


def allow_many_files() -> None:
    """As many open files as are allowed: callers and listeners take descriptors, and the usual soft limit is far below."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
