"""Programs that the agent starts for itself and does not wait for."""
from __future__ import annotations

import os
from collections.abc import Sequence

from cloison.runtime.children import when_ended


def spawn(argv: Sequence[str]) -> None:
    """Start a program by full path, in a session of its own; it is reaped when it ends. Raises OSError."""
    pid = os.posix_spawn(argv[0], list(argv), os.environ, setsid=True)

    def reap() -> None:
        os.waitpid(pid, 0)

    when_ended(pid, reap)
