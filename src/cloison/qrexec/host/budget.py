"""What a qube's calls may cost the others that share policy daemon and processors with it (docs/decisions/0036).

Limits on requests as they are heard. How often at all: beyond it, requests wait in the qube. And how often while several calls are
open: a qube beyond that floods, until it is calm. It is to go after others where they want the processor, and is heard a few times
a second. A program that makes one call after the other meets none of them, however fast it is under emulation, unless two more
calls of its qube are open.
"""
from __future__ import annotations

from typing import Final, NamedTuple

from cloison.qrexec.host.programs import Programs
from cloison.runtime.token_bucket import TokenBucket

BURST: Final = 400
RATE: Final = 500.0                      # requests a second; a service of the host that is a program takes 2 ms or more to start
FEW: Final = 2                           # open calls, itself counted, with which a request is free
CROWD_BURST: Final = 64
CROWD_RATE: Final = 16.0                 # requests a second beside more
FLOOD_BURST: Final = 32                  # requests of a flood that are heard at once
FLOOD_RATE: Final = 50.0                 # and a second
DISPOSABLES: Final = 16                  # at once, where nobody says how many


class Cost(NamedTuple):
    """Of one request, in seconds."""

    wait: float                          # until the next one is heard
    behind: float                        # for which the qube is to go after others; 0 unless it floods


class Budget:
    """One qube's, for as long as it runs: a new agent in it finds what the former one has left.

    `disposables`: how many its calls may have at once; `programs`: those that they have on the host.
    """

    def __init__(self, disposables: int = DISPOSABLES, programs: Programs | None = None) -> None:
        self.disposables = disposables
        self.programs = Programs() if programs is None else programs
        self._requests = TokenBucket(BURST, RATE)
        self._crowd = TokenBucket(CROWD_BURST, CROWD_RATE)
        self._flood = TokenBucket(FLOOD_BURST, FLOOD_RATE)
        self._floods_until = float("-inf")

    def request(self, now: float, open_calls: int) -> Cost:
        """Another request; so many calls are not over, itself counted. `now`: seconds, monotonic."""
        self._requests.spend(now)
        # Heard seldom, a flood has few calls open: as long as it is one, all its requests count.
        if (open_calls > FEW or now < self._floods_until) and not self._crowd.take(now):
            self._floods_until = now + self._crowd.full_in(now)
        if now >= self._floods_until:
            return Cost(self._requests.wait(now), 0.0)
        self._flood.spend(now)
        return Cost(max(self._requests.wait(now), self._flood.wait(now)), self._floods_until - now)
