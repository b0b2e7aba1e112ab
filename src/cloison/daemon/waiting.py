"""Qubes that wait for disk space, as qubesd knows them: each goes on by itself when there is some (warden/space.py).

Such a qube is called Paused, with `domain-paused` and `domain-unpaused` as for any other; `domain-space-wanted` says where there
is no space. What is asked of it meanwhile is answered with that sentence.
"""
from __future__ import annotations

import asyncio
import logging

from cloison.errors import QubeError
from cloison.model.domains import Qube
from cloison.wire.warden import no_space

log = logging.getLogger(__name__)


class Waiting:
    def __init__(self) -> None:
        self._folders: dict[str, str] = {}                      # uuid -> where there is no space
        self._begun: dict[str, asyncio.Event] = {}              # set when its wait begins, where somebody minds

    def __contains__(self, qube: Qube) -> bool:
        return qube.uuid in self._folders

    def begin(self, qube: Qube, folder: str) -> None:
        self._folders[qube.uuid] = folder
        qube.problem = self.sentence(qube)
        log.error("%s", qube.problem)
        event = self._begun.pop(qube.uuid, None)
        if event is not None:
            event.set()

    def end(self, qube: Qube) -> bool:
        """Whether it did wait."""
        if self._folders.pop(qube.uuid, None) is None:
            return False
        qube.problem = ""
        return True

    def forget(self, qube: Qube) -> None:
        """Its machine is gone."""
        self.end(qube)
        self._begun.pop(qube.uuid, None)

    def sentence(self, qube: Qube) -> str:
        return f"{qube.name} waits for disk space: {no_space(self._folders[qube.uuid])}; qvm-kill ends it"

    def check(self, qube: Qube) -> None:
        """Raises QubeError: not QubeNotRunning, which tools take for "it is off already"."""
        if qube in self:
            raise QubeError(self.sentence(qube))

    async def unless(self, qube: Qube, other: asyncio.Event) -> None:
        """Until `other` is set. Raises QubeError as soon as the qube waits for disk space instead."""
        begun = self._begun.setdefault(qube.uuid, asyncio.Event())
        self.check(qube)
        tasks = {asyncio.ensure_future(event.wait()) for event in (other, begun)}
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        if not other.is_set():
            self.check(qube)
