"""Warm images of this installation: each made once, by a maker that the zygote forks; dropped with what they were made of.

There is one for each machine's shape, and a shape is whatever memory and processors somebody gives a qube. So there are at most
MOST of them: when another one is made, those go that were not started from for longest. Which have qubes that run stay.
"""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import socket
import time
from collections.abc import Collection

from cloison.daemon.wardens import Progress
from cloison.daemon.zygote import Zygote
from cloison.errors import MachineError, PeerError
from cloison.hypervisor.qemu import warm
from cloison.runtime import life
from cloison.runtime.paths import Paths
from cloison.runtime.whole import whole
from cloison.wire.warden import Launch, Lines, launch_to_json

log = logging.getLogger(__name__)


MOST = 10                   # images: each is 200 MB on disk, and once it was started from about as much in memory
SPARED = 60.0               # s since it was wanted last: it may be about to be started from
END_TIME = 3.0              # s that a maker may take to end by itself when it is told to


class _Making:
    """One image in the making."""

    def __init__(self, task: asyncio.Task[str | None]) -> None:
        self.task = task
        self.waiting = 0        # starts that wait for it
        self.ahead = 0          # others that want it
        self.given_up = False


class WarmImages:
    def __init__(self, paths: Paths, zygote: Zygote) -> None:
        self._paths, self._zygote = paths, zygote
        self._making: dict[str, _Making] = {}
        self._unmakable: set[str] = set()

    def sweep(self) -> None:
        """Drop what can't be used any more."""
        warm.sweep(self._paths.warm)

    async def drop_if_damaged(self, folder: str) -> None:
        """Every later start from it would fail, too; without it the next one makes another."""
        try:
            await asyncio.to_thread(warm.check, folder)
        except MachineError as error:
            log.error("%s; the next start makes another", error)
            self.drop(os.path.basename(folder))

    def names(self) -> list[str]:
        return warm.names(self._paths.warm)

    async def ensure(self, launch: Launch, progress: Progress, *, ahead: bool = False) -> str | None:
        try:
            key = warm.key(launch)
        except MachineError as error:
            log.warning("no warm image for %s: %s", launch.name, error)
            return None
        folder = warm.folder(self._paths.warm, key)
        if folder is not None:
            warm.mark_used(folder)
        if folder is not None or key in self._unmakable:
            return folder
        while (under_way := self._making.get(key)) is not None and under_way.given_up:
            await asyncio.wait({under_way.task})         # the next one needs its place
        return await self._wait(self._making.get(key) or self._begin(key, launch, progress), ahead=ahead)

    def _begin(self, key: str, launch: Launch, progress: Progress) -> _Making:
        making = self._making[key] = _Making(asyncio.get_running_loop().create_task(self._make(key, launch, progress)))
        making.task.add_done_callback(lambda _: self._making.pop(key, None))
        return making

    async def _wait(self, making: _Making, *, ahead: bool) -> str | None:
        """Its outcome, None if others have given it up. Who is cancelled as the last one that waits gives it up."""
        making.waiting, making.ahead = making.waiting + (not ahead), making.ahead + ahead
        try:
            await asyncio.wait({making.task})
        except asyncio.CancelledError:
            if making.waiting == (not ahead) and (not ahead or making.ahead == 1):
                making.given_up = True
                making.task.cancel()
                await whole(_ended(making.task))
            raise
        finally:
            making.waiting, making.ahead = making.waiting - (not ahead), making.ahead - ahead
        return None if making.task.cancelled() else making.task.result()

    async def _make(self, key: str, launch: Launch, progress: Progress) -> str | None:
        """A maker's whole life, seen from here. None, and the reason in the log, if it failed."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                nobody = dataclasses.replace(launch, identity={}, xid=1)
                self._zygote.send({"do": "make", "launch": launch_to_json(nobody)}, [theirs.fileno()])
            try:
                made, error = await _outcome(ours, progress)
            except asyncio.CancelledError:
                await whole(self._stop(ours, launch))
                raise
        if made is None:
            log.error("no warm image for %s: %s", launch.name, error)
            self._unmakable.add(key)
            await self._clear_making(warm.making(launch))
        else:
            with contextlib.suppress(OSError):           # the next one looks again
                self._drop_beyond(MOST)
        return made

    def _drop_beyond(self, most: int) -> None:
        """At most so many are left, if the others are not in use. Raises OSError."""
        images = warm.by_use(self._paths.warm)
        surplus = len(images) - most
        for used, name in images:
            if surplus <= 0 or time.time() - used < SPARED:
                return
            if not warm.in_use(self._paths.warm, name):
                log.info("the warm image %s is dropped: there are %d others that were used since", name, most)
                self.drop(name)
                surplus -= 1

    async def _stop(self, ours: socket.socket, launch: Launch) -> None:
        """End a maker. It hangs up when nothing of it is left, and is killed if it takes too long."""
        ours.shutdown(socket.SHUT_WR)
        with contextlib.suppress(TimeoutError, OSError, PeerError):
            async with asyncio.timeout(END_TIME):
                await _outcome(ours, lambda _text: None)
        await self._clear_making(warm.making(launch))

    async def _clear_making(self, name: str) -> None:
        """What a killed maker could not end and remove."""
        await asyncio.to_thread(life.end, self._paths.qubes, name)
        await asyncio.to_thread(shutil.rmtree, os.path.join(self._paths.warm, name), ignore_errors=True)
        life.drop(self._paths.qubes, name)

    async def forget(self, commits: Collection[str]) -> None:
        for name in warm.names(self._paths.warm):
            if warm.commit(self._paths.warm, name) in commits:
                self.drop(name)

    def drop(self, name: str) -> None:
        """From disk, and from the zygote's memory. Who runs from it holds what it needs."""
        with contextlib.suppress(MachineError):
            self._zygote.send({"do": "forget", "folder": os.path.join(self._paths.warm, name)}, [])
        warm.drop(self._paths.warm, name)


async def _ended(task: asyncio.Task[str | None]) -> None:
    await asyncio.wait({task})
    if not task.cancelled():
        task.exception()                # nobody wants to hear of it


async def _outcome(ours: socket.socket, progress: Progress) -> tuple[str | None, str]:
    """What the maker says until it hangs up: the image's folder, or None and why."""
    lines, loop = Lines(), asyncio.get_running_loop()
    made, error = None, "its maker ended"
    while data := await loop.sock_recv(ours, 65536):
        for message in lines.feed(data):
            if "progress" in message:
                progress(str(message["progress"]))
            elif "made" in message:
                made = str(message["made"])
            else:
                error = str(message.get("error") or message.get("reason"))
    return made, error
