"""The last wall around a qube's memory: what its QEMU really uses is looked at, and one above its ceiling is ended.

Nothing that a guest is known to do gets there: the code cache has its size, queues their bounds. It is for what is not known.
"""
from __future__ import annotations

import asyncio
from collections.abc import Callable

from cloison.runtime.memory import used_by

PERIOD = 1.0              # s; a look costs a tenth of a millisecond


async def until_over(pid: int, ceiling: int, *, used: Callable[[int], int] = used_by, period: float = PERIOD) -> int:
    """Returns, perhaps never, when the process and its descendants use more bytes than that: how many."""
    loop = asyncio.get_running_loop()
    over: asyncio.Future[int] = loop.create_future()
    timer: list[asyncio.Handle] = []

    def look() -> None:
        found = used(pid)
        if found > ceiling:
            over.set_result(found)
        else:
            timer[:] = [loop.call_later(period, look)]

    look()
    try:
        return await over
    finally:
        for each in timer:
            each.cancel()
