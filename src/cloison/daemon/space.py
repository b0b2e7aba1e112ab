"""Looks at how much space is left where the store and the pools are, and says so before there is none.

| level | free is below | what follows |
|---|---|---|
| plenty | | nothing |
| low | LOW, or an eighth of a small disk | a warning: log, event `space-low`, `cloison status`, `qvm-start` |
| last | LAST, or a fifteenth of a small disk | no qube that writes there starts: those that run keep the rest |

A level is left when a quarter more than its limit is free. What happens at the very end: daemon/reserve.py, warden/space.py.
"""
from __future__ import annotations

import asyncio
import enum
import logging
import os
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, NamedTuple

from cloison.daemon.reserve import Reserves
from cloison.errors import CloisonError, DiskFull

log = logging.getLogger(__name__)
LOW, LAST = 2 << 30, 256 << 20          # bytes
TICK = 2.0                              # s between two looks
MEGABYTE = 1 << 20
InThread = Callable[..., Coroutine[Any, Any, Any]]


class Level(enum.IntEnum):
    PLENTY = 0
    LOW = 1
    LAST = 2


def level(size: int, free: int, before: Level = Level.PLENTY) -> Level:
    """Of a file system of `size` bytes, `before` being what it was."""
    for found, limit in ((Level.LAST, min(LAST, size // 15)), (Level.LOW, min(LOW, size // 8))):
        if free < limit or (before >= found and free < limit + limit // 4):
            return found
    return Level.PLENTY


class Found(NamedTuple):
    """A file system as it was found last. `folder`: the first one that is on it."""

    folder: str
    level: Level
    free: int                       # bytes

    def __str__(self) -> str:
        what = {
            Level.PLENTY: "there is space enough again",
            Level.LOW: "the disk is nearly full; when it is full, qubes that write stop",
            Level.LAST: "the disk is as good as full; no further qube starts, and those that write will stop",
        }[self.level]
        return f"{self.free // MEGABYTE} MB are free in {self.folder}: {what}"


class Space:
    """`folders` gives those of data and pools; `tell` hears of a file system whose level has changed; `in_thread` runs what may
    wait for a disk.
    """

    def __init__(
        self, folders: Callable[[], Iterable[str]], tell: Callable[[Found], None], reserves: Reserves, in_thread: InThread,
    ) -> None:
        self._folders, self._tell, self._reserves, self._in_thread = folders, tell, reserves, in_thread
        self._devices: dict[str, int] = {}              # folder -> its file system, of those that can be asked
        self._found: dict[int, Found] = {}              # by file system
        self._asking: dict[str, asyncio.Task[tuple[int, int, int]]] = {}

    async def watch(self) -> None:
        """For ever. A look that fails is told of, once until one succeeds, and the next one comes all the same."""
        failing = False
        while True:
            try:
                await self.look()
                failing = False
            except Exception as error:
                log.log(logging.DEBUG if failing else logging.ERROR, "how much space is left can't be found out: %s", error,
                        exc_info=None if isinstance(error, CloisonError | OSError) else error)
                failing = True
            await asyncio.sleep(TICK)

    async def look(self) -> None:
        """Once. A disk that hangs is asked once, and holds up no other."""
        folders = list(dict.fromkeys(self._folders()))
        asking = {folder: self._asking.get(folder) or self._ask(folder) for folder in folders}
        await asyncio.wait(asking.values(), timeout=TICK)
        answers = {folder: asked.result() for folder, asked in asking.items() if asked.done()}
        self._devices = {folder: device for folder, (device, _, _) in answers.items() if device}
        for folder in folders:
            device, size, free = answers.get(folder, (0, 0, 0))
            if device and folder == self._first(device, folders):
                self._take(folder, device, size, free)
        self._found = {device: found for device, found in self._found.items() if device in self._devices.values()}
        await self._in_thread(self._reserves.keep, list(self._devices))

    def _ask(self, folder: str) -> asyncio.Task[tuple[int, int, int]]:
        """Whoever looks meanwhile waits for the same answer."""
        asked = self._asking[folder] = asyncio.ensure_future(self._in_thread(_ask, folder))
        asked.add_done_callback(lambda _: self._asking.pop(folder, None))
        return asked

    def _first(self, device: int, folders: Iterable[str]) -> str:
        return next(folder for folder in folders if self._devices.get(folder) == device)

    def _take(self, folder: str, device: int, size: int, free: int) -> None:
        before = self._found[device].level if device in self._found else Level.PLENTY
        found = self._found[device] = Found(folder, level(size, free, before), free)
        if found.level is not before:
            log.log(logging.INFO if found.level is Level.PLENTY else logging.WARNING, "%s", found)
            self._tell(found)

    def warnings(self) -> list[str]:
        """A sentence for each file system that has little left."""
        return [str(found) for found in self._found.values() if found.level is not Level.PLENTY]

    def _is_last(self, folder: str) -> Found | None:
        found = self._found.get(self._devices.get(folder, 0))
        return found if found is not None and found.level is Level.LAST else None

    async def check_start(self, name: str, folders: Iterable[str]) -> None:
        """Raises DiskFull for a qube of that name that would write there. Looks again before it refuses."""
        folders = list(folders)
        if any(map(self._is_last, folders)):
            await self.look()
        for folder in folders:
            if (found := self._is_last(folder)) is not None:
                raise DiskFull(name, found.folder, found.free)


def _ask(folder: str) -> tuple[int, int, int]:
    """Its file system, that one's size and free bytes; zeros if it can't be asked, or has no size."""
    try:
        found = os.statvfs(folder)
        return os.stat(folder).st_dev if found.f_blocks else 0, found.f_blocks * found.f_frsize, found.f_bavail * found.f_frsize
    except OSError:
        return 0, 0, 0
