"""How many disposables one qube's calls may have at once (docs/decisions/0038). Others wait in line, and the line has an end.

A call's disposable holds memory of the host for as long as the call lasts, and a start takes processors from everybody.
"""
from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

from cloison.qrexec.host.policy_client import Denied
from cloison.qrexec.host.qubesd_client import Disposable

STARTING = 2                             # starts of one qube's at a time: more make none of them faster
MAX_WAITING = 64                         # calls in line; a qube's other calls still find room among those that wait for an answer


class Disposables:
    """`most`: at once; 0 for none."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._places = asyncio.Semaphore(most)
        self._starts = asyncio.Semaphore(STARTING)
        self._waiting = 0

    @contextlib.asynccontextmanager
    async def one(self, qubesd: str, template: str, waits: Callable[[], None]) -> AsyncIterator[Disposable]:
        """A disposable that runs inside and is killed afterwards. `waits` is called if another call has to end before.

        Raises Denied for a full line, CloisonError, OSError.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._turn(stack, waits)
            async with self._starts:
                disposable = await stack.enter_async_context(Disposable(qubesd, template))
            yield disposable

    async def _turn(self, stack: contextlib.AsyncExitStack, waits: Callable[[], None]) -> None:
        if not self._most:
            raise Denied("calls of this qube may have no disposables")
        if self._waiting >= MAX_WAITING:
            raise Denied(f"{MAX_WAITING} calls of this qube wait for a disposable already")
        if self._places.locked():
            waits()
        self._waiting += 1
        try:
            await stack.enter_async_context(self._places)
        finally:
            self._waiting -= 1
