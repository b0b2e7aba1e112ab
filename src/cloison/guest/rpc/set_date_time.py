"""qubes.SetDateTime: sets the clock to the time in one line, unless it is right already."""
from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from cloison.errors import PeerError
from cloison.guest.rpc.stdin import read_line
from cloison.wire import clock

NEAR = 2 * 10**9                         # nanoseconds that are not worth a jump


def main(argv: Sequence[str]) -> int:
    """The service; root only."""
    try:
        wanted = clock.parse(read_line(clock.LENGTH_MAX) + b"\n")
        if abs(wanted - time.time_ns()) > NEAR:
            time.clock_settime_ns(time.CLOCK_REALTIME, wanted)
        return 0
    except (PeerError, OSError) as error:
        print(f"qubes.SetDateTime: {error}", file=sys.stderr)
        return 1
