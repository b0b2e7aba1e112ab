"""Programs that the agent starts for itself and does not wait for."""
from __future__ import annotations

import os
from collections.abc import Callable, Sequence

from cloison.runtime.children import when_ended


def spawn(argv: Sequence[str], on_end: Callable[[], None] = lambda: None) -> None:
    """Start a program by full path, in a session of its own; reaped when it ends, then `on_end` is called. Raises OSError."""
    pid = os.posix_spawn(argv[0], list(argv), os.environ, setsid=True)

    def reap() -> None:
        os.waitpid(pid, 0)
        on_end()

    when_ended(pid, reap)
