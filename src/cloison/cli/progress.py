"""Say what is being waited for, when it takes longer than a moment: a sentence, and on a terminal the seconds."""
from __future__ import annotations

import sys
import time

from cloison.cli import tool
from cloison.client.connection import Pending, Stream
from cloison.client.connection import wait as wait_for

PATIENCE = 2.0                           # seconds of silence; a warm start takes less
_STEP = 0.5
_COLD = ("TemplateVM", "StandaloneVM")   # classes without warm images
_BOOTS = "{}: it boots."
_WARM = "{}: it boots, if it has no warm image yet.\nA change of its template, memory, vcpus, kernel or kernelopts makes a new one."


def wait(call: Pending | Stream, what: str, *, klass: str = "", quiet: bool = False) -> None:
    """Until the call has something to read. `klass`: of the qube that is started."""
    if quiet or wait_for(call, PATIENCE):
        return
    print((_BOOTS if klass in _COLD else _WARM).format(tool.printable(what)), file=sys.stderr, flush=True)
    if tool.is_terminal(sys.stderr):
        _count(call, what)


def _count(call: Pending | Stream, what: str) -> None:
    begun = time.monotonic() - PATIENCE
    shown = 0
    try:
        while not wait_for(call, _STEP):
            line = f"{what}: {time.monotonic() - begun:.0f} s"
            print(f"\r{line:{shown}}", end="", file=sys.stderr, flush=True)
            shown = len(line)
    finally:
        print(f"\r{'':{shown}}\r", end="", file=sys.stderr, flush=True)
