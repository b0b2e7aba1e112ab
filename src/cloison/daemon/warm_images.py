"""Warm images of this installation: each made once, by a maker that the zygote forks; dropped with what they were made of."""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import shutil
import socket
from collections.abc import Collection

from cloison.daemon.wardens import Progress
from cloison.daemon.zygote import Zygote
from cloison.errors import MachineError
from cloison.hypervisor.qemu import warm
from cloison.runtime import life
from cloison.runtime.paths import Paths
from cloison.wire.warden import Launch, Lines, launch_to_json

log = logging.getLogger(__name__)


class WarmImages:
    def __init__(self, paths: Paths, zygote: Zygote) -> None:
        self._paths, self._zygote = paths, zygote
        self._making: dict[str, asyncio.Future[str | None]] = {}
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

    async def ensure(self, launch: Launch, progress: Progress) -> str | None:
        try:
            key = warm.key(launch)
        except MachineError as error:
            log.warning("no warm image for %s: %s", launch.name, error)
            return None
        folder = warm.folder(self._paths.warm, key)
        if folder is not None or key in self._unmakable:
            return folder
        making = self._making.get(key)
        if making is None:
            making = self._making[key] = asyncio.ensure_future(self._make(launch, progress))
            making.add_done_callback(lambda _: self._making.pop(key, None))
        made = await asyncio.shield(making)
        if made is None:
            self._unmakable.add(key)
        return made

    async def _make(self, launch: Launch, progress: Progress) -> str | None:
        """A maker's whole life, seen from here. None, and the reason in the log, if it failed."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            nobody = dataclasses.replace(launch, identity={}, xid=1)
            self._zygote.send({"do": "make", "launch": launch_to_json(nobody)}, [theirs.fileno()])
        lines = Lines()
        loop = asyncio.get_running_loop()
        error = "its maker ended"
        with ours:
            while data := await loop.sock_recv(ours, 65536):
                for message in lines.feed(data):
                    if "progress" in message:
                        progress(str(message["progress"]))
                    elif "made" in message:
                        return str(message["made"])
                    else:
                        error = str(message.get("error") or message.get("reason"))
        log.error("no warm image for %s: %s", launch.name, error)
        await self._clear_making(warm.making(launch))
        return None

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
