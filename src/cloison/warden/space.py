"""A machine that waits for disk space. A full host disk stops it (`Machine.stopped_itself`); nothing of it is lost, and it goes on.

    running --a write finds no space--> waiting --RESUME bytes are free--> running
       ^                                  |  |
       |                     told to pause|  |killed, or its process ends
       +---told to go on---- paused <-----+  +---> gone

- waiting: qubesd hears `space-wanted`, and calls it Paused; whoever asks something of it is told what it waits for.
- It is the warden that looks for space, so it goes on while qubesd is away. It may find that there is still none (a quota, a
  file system that says one thing and does another): then it waits longer each time, up to LAST seconds.
- told to go on (`retry`) while there is no space: an error that says so; it goes on by itself later.
- told to pause: it stays stopped until it is told to go on, and finds out then whether there is space.
- asked to shut down: an error that says what it waits for, since its guest can't hear it. kill works as ever.
- during a start: the start fails at once; nobody waits for disk space with a tool in hand.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Collection

from cloison.errors import MachineError
from cloison.hypervisor.base import FULL, Machine
from cloison.wire.warden import RESUME, Launch, no_space

FIRST, LAST = 1.0, 30.0     # s between two looks, and at most
CALM = 60.0                 # s without stopping again, after which the next wait begins with FIRST


def folders(launch: Launch, tmp: str) -> list[str]:
    """Where the files lie that its disks grow in."""
    tops = [os.path.dirname(disk.top.path) for disk in launch.disks if disk.top is not None]
    overlays = [tmp] if any(disk.writable and disk.top is None for disk in launch.disks) else []
    return list(dict.fromkeys([*tops, *overlays]))


def free_bytes(folder: str) -> int:
    """What is free for us. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


class SpaceWait:
    """`changed` is called with the folder that has no space when the wait begins, and with an empty text when it is over."""

    def __init__(
        self, machine: Machine, folders: Collection[str], changed: Callable[[str], None], *,
        free: Callable[[str], int] = free_bytes, clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._machine, self._folders, self._changed, self._free, self._clock = machine, folders, changed, free, clock
        self._over = asyncio.Event()
        self.where = ""             # the folder that it waits for, or empty

    async def run(self) -> str:
        """Until the machine stops for another reason, which is returned. Raises MachineError when it ends in a wait."""
        pause, resumed = FIRST, -CALM
        while (why := await self._machine.stopped_itself()) == FULL:
            pause = min(2 * pause, LAST) if self._clock() - resumed < CALM else FIRST
            self._over.clear()
            self.where, _ = await self._fullest()
            self._changed(self.where)
            while self.where:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), pause)
                await self._try()
            resumed = self._clock()
        return why

    async def retry(self) -> None:
        """Somebody wants it to go on now. Raises MachineError if there is no space."""
        await self._try()
        if self.where:
            raise MachineError(no_space(self.where))

    def hold(self) -> None:
        """It is to stay stopped, space or not."""
        self.where = ""
        self._over.set()

    async def _try(self) -> None:
        folder, free = await self._fullest()
        if self.where and free >= RESUME:
            self.hold()
            await self._machine.resume()
            self._changed("")
        elif self.where:
            self.where = folder

    async def _fullest(self) -> tuple[str, int]:
        """The folder that has least, and how much. One that can't be asked has nothing."""
        found = [(await asyncio.to_thread(self._ask, folder), folder) for folder in self._folders]
        free, folder = min(found, default=(0, "its disk"))
        return folder, free

    def _ask(self, folder: str) -> int:
        try:
            return self._free(folder)
        except OSError:
            return 0
