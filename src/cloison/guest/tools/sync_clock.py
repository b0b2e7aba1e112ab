"""qvm-sync-clock in a qube: sets the clock by service qubes.GetDate. Whoever answers is trusted with nothing more."""
from __future__ import annotations

import time
from collections.abc import Sequence

from cloison.errors import PeerError
from cloison.guest.tools.call import Outgoing, fail
from cloison.wire import clock

PROG = "qvm-sync-clock"


def main(argv: Sequence[str]) -> int:
    """The program; it takes no arguments."""
    if len(argv) != 1:
        fail(PROG, "takes no arguments")
    try:
        call = Outgoing("@default", "qubes.GetDate+nanoseconds")
    except OSError as error:
        fail(PROG, f"can't start a call: {error.strerror}")
    untrusted = _read(call)
    status = call.wait()
    if status:
        return status
    try:
        now = clock.parse(untrusted)
    except PeerError as error:
        fail(PROG, f"{error}: the clock stays as it is")
    try:
        time.clock_settime_ns(time.CLOCK_REALTIME, now)
    except OSError as error:
        fail(PROG, f"can't set the clock: {error.strerror}")
    return 0


def _read(call: Outgoing) -> bytes:
    """All that comes, but at most one byte more than a time has."""
    call.end_input()
    untrusted = b""
    while len(untrusted) <= clock.LENGTH_MAX and (piece := call.socket.recv(clock.LENGTH_MAX + 1 - len(untrusted))):
        untrusted += piece
    return untrusted
