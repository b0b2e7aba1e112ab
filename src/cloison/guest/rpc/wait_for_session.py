"""The waiting part of qubes.WaitForSession: ends when the agent holds that user's session."""
from __future__ import annotations

import os
import select
from collections.abc import Sequence

from cloison.runtime.inotify import CREATE, Watch

SESSIONS = "/run/cloison/sessions"


def main(argv: Sequence[str], folder: str = SESSIONS) -> int:
    """`argv[1]`: the user's name."""
    watch = Watch(folder, CREATE)
    try:
        while not os.path.exists(f"{folder}/{argv[1]}"):
            select.select([watch], [], [])
            watch.clear()
    finally:
        watch.close()
    return 0
