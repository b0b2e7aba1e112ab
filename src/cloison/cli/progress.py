"""Say what is being waited for, when it takes longer than a moment: one line on a terminal, rewritten in place."""
from __future__ import annotations

import sys
import time

from cloison.cli import tool
from cloison.client.connection import Pending, Stream
from cloison.client.connection import wait as wait_for

PATIENCE = 2.0                           # seconds of silence; a warm start takes less
_STEP = 0.5
_WARM = "making its warm start image, once for each version of its template"


def wait(call: Pending | Stream, what: str, *, quiet: bool = False) -> None:
    """Until the call has something to read. Prints only on a terminal."""
    if quiet or not tool.is_terminal(sys.stderr) or wait_for(call, PATIENCE):
        return
    begun = time.monotonic() - PATIENCE
    shown = 0
    try:
        while not wait_for(call, _STEP):
            line = f"{what}: {time.monotonic() - begun:.0f} s ({_WARM})"
            print(f"\r{line:{shown}}", end="", file=sys.stderr, flush=True)
            shown = len(line)
    finally:
        print(f"\r{'':{shown}}\r", end="", file=sys.stderr, flush=True)
