"""Background tasks of one owner: kept from being collected while they run, counted, ended together."""
from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks(set["asyncio.Task[None]"]):
    """Those that have not ended. A task whose failure nobody takes is told of by asyncio itself."""

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it in the running loop, beside everything else."""
        task = asyncio.get_running_loop().create_task(work)
        self.add(task)
        task.add_done_callback(self.discard)
        return task

    def cancel(self) -> None:
        """Ask all to end, and wait for none."""
        for task in list(self):
            task.cancel()

    async def settled(self) -> None:
        """Until none is left, those included that begin meanwhile."""
        while self:
            await asyncio.wait(self)

    async def end(self) -> None:
        """Cancel all and wait until they have ended."""
        self.cancel()
        if self:
            await asyncio.wait(self)
