"""qubes.GetDate and qubes.GetRandomizedTime of the host."""
from __future__ import annotations

import secrets
import sys
import time
from collections.abc import Sequence

from cloison.client.connection import Connection
from cloison.client.domains import DOM0, get_property, list_qubes
from cloison.errors import CloisonError
from cloison.qrexec.host.services.asking import ask
from cloison.wire import clock

PATIENCE = 10.0                          # seconds for the clock qube: a late time is a wrong one
JITTER = 180 * 10**9                     # nanoseconds


def main(argv: Sequence[str]) -> int:
    """qubes.GetDate: the clock qube's time, or the host's if there is none that answers well."""
    now = _clockvm_time(Connection())
    sys.stdout.buffer.write(clock.encode(time.time_ns() if now is None else now, nanoseconds=len(argv) > 1))
    sys.stdout.buffer.flush()
    return 0


def _clockvm_time(connection: Connection) -> int | None:
    try:
        name = get_property(connection, None, "clockvm").value
        if not name or name == DOM0 or not list_qubes(connection, name)[name].running:
            return None
        return clock.parse(ask(connection, name, "qubes.GetDate+nanoseconds", clock.LENGTH_MAX, PATIENCE))
    except CloisonError as error:
        print(f"qubes.GetDate: the host's own time is used: {error}", file=sys.stderr)
        return None


def main_randomized(argv: Sequence[str]) -> int:
    """qubes.GetRandomizedTime: no qube learns the host's clock well enough to know the host by it."""
    seconds, rest = divmod(time.time_ns() + secrets.randbelow(2 * JITTER + 1) - JITTER, 10**9)
    print(f"{seconds}.{rest:09}", flush=True)
    return 0
