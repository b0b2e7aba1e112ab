"""How many programs of the host one qube's calls may have at once (docs/decisions/0046). Others wait a moment, in a short line.

A program that a call starts here takes memory and processors of the host for as long as it runs, which is up to the qube that
it listens to, or even asks. It counts until it has ended and its call is over, whatever comes last. Services that are a socket
of a program that runs anyway, the Admin API among them, are not counted.
"""
from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

from cloison.qrexec.host.policy_client import Denied

MOST: Final = 16                         # of one qube at once, where nobody says how many
MOST_EACH: Final = 4                     # and of one service
MAX_WAITING: Final = 32                  # calls in line
PATIENCE: Final = 5.0                    # s that a call stands in it


class Programs:
    """One qube's, for as long as it runs: a new agent in it finds what the former one has left running."""

    def __init__(self, most: int = MOST, each: int = MOST_EACH, *, patience: float = PATIENCE) -> None:
        """`most` at once, `each` of one service; 0 for none. `patience`: seconds in line."""
        self._most, self._each, self._patience = most, each, patience
        self._running: Counter[str] = Counter()
        self._line: deque[tuple[str, asyncio.Future[None]]] = deque()

    async def place(self, service: str) -> Callable[[], None]:
        """A place for one program of that service; what is returned gives it back, once. Raises Denied where there is none."""
        if self._has_room(service):
            self._running[service] += 1
        else:
            await self._turn(service)
        return self._release(service)

    async def _turn(self, service: str) -> None:
        if not self._most or not self._each:
            raise Denied("calls of this qube may have no programs on the host")
        if len(self._line) >= MAX_WAITING:
            raise Denied(f"{self._why_not(service)}, and {MAX_WAITING} calls wait")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (service, turn)
        self._line.append(entry)
        try:
            await asyncio.wait([turn], timeout=self._patience)
        except asyncio.CancelledError:
            if turn.done():
                self._release(service)()
            raise
        finally:
            if not turn.done():
                self._line.remove(entry)
        if not turn.done():
            raise Denied(self._why_not(service))

    def _has_room(self, service: str) -> bool:
        return self._running.total() < self._most and self._running[service] < self._each

    def _why_not(self, service: str) -> str:
        if self._running[service] >= self._each:
            return f"{self._each} programs of {service} run on the host for this qube, the most by call-programs-each-max"
        return f"{self._most} programs run on the host for this qube, the most by call-programs-max"

    def _release(self, service: str) -> Callable[[], None]:
        held = True

        def release() -> None:
            nonlocal held
            if held:
                held = False
                self._running[service] -= 1
                self._next()

        return release

    def _next(self) -> None:
        """Whoever comes first in line and has room now."""
        for entry in list(self._line):
            service, turn = entry
            if self._has_room(service):
                self._line.remove(entry)
                self._running[service] += 1
                turn.set_result(None)
