"""Keeps disposables ready: made, started and paused ahead of their use (reference/admin-api.md 16).

One task a template looks after its list at a time. A disposable is on the list from its birth; what is not good any more, or
too many, is removed. A list that a crash has left behind is cleaned by the next daemon: `recover`.
"""
from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Iterable
from typing import Any

from cloison.admin.qubesd import Qubesd
from cloison.errors import CloisonError, QubeNotFound, StorageError
from cloison.model.creation import drop_preloaded, preloaded
from cloison.model.domains import Qube
from cloison.model.journal import Event
from cloison.plan import preload as plan
from cloison.plan.preload import Wake
from cloison.runtime.tasks import Tasks
from cloison.values import PowerState

log = logging.getLogger(__name__)


class Preloads:
    def __init__(self, qubesd: Qubesd) -> None:
        self._qubesd = qubesd
        self._locks: dict[str, asyncio.Lock] = {}
        self._tasks = Tasks()
        self._delayed: dict[str, asyncio.TimerHandle] = {}      # uuid of a template -> when to look after it next
        self._closed = False

    # -- when -----------------------------------------------------------------------------------------------------

    def follow(self, events: Iterable[Event]) -> None:
        """What has happened may change which disposables are to wait."""
        system = self._qubesd.system
        for event in events:
            if event.name == "domain-unpaused":
                qube = system.qubes.get(event.subject)
                if qube is not None and qube.is_preload and plan.COMPLETED in qube.features:
                    self._spawn(self._used_by_hand(qube))
        for wake in plan.wakes(system, events):
            self.wake(wake)

    def wake(self, wake: Wake) -> None:
        self._spawn(self._run(wake))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        if self._closed:
            work.close()
        else:
            self._tasks.begin(work)

    async def close(self) -> None:
        """Give up what is under way; what it leaves is for the next daemon's `recover`."""
        self._closed = True
        for timer in self._delayed.values():
            timer.cancel()
        await self._tasks.end()

    async def settled(self) -> None:
        """Until nothing is under way. What waits for its delay is not."""
        await self._tasks.settled()

    # -- what -----------------------------------------------------------------------------------------------------

    async def _run(self, wake: Wake) -> None:
        template = self._qubesd.system.qubes.get(wake.template)
        if template is None or (wake.stale and not await self._drop_stale(template)):
            return
        if wake.told:
            extra = {"delay": wake.delay} if wake.delay else {}
            self._emit(template, "domain-preload-dispvm-start", reason=wake.reason, **extra)
        if not (plan.maximum(template) or preloaded(template)):
            return
        if wake.delay:
            self._later(wake.delay, template)
        else:
            await self._fill(template)

    async def _drop_stale(self, template: Qube) -> bool:
        """Whether there were any."""
        async with self._lock(template):
            stale = [name for name in preloaded(template) if not self._is_good(name)]
            await self.drop(template, stale)
        return bool(stale)

    def _later(self, delay: float, template: Qube) -> None:
        """The delay is what the person has set: who took a disposable is to have the machine for itself meanwhile.

        However often it is asked for, it is done once, and as soon as the first one wants.
        """
        def due() -> None:
            del self._delayed[template.uuid]
            self._spawn(self._fill(template))

        loop = asyncio.get_running_loop()
        pending = self._delayed.get(template.uuid)
        if pending is not None:
            if pending.when() <= loop.time() + delay:
                return
            pending.cancel()
        self._delayed[template.uuid] = loop.call_later(delay, due)

    def forget(self, template: Qube) -> None:
        """It is removed."""
        timer = self._delayed.pop(template.uuid, None)
        if timer is not None:
            timer.cancel()
        self._locks.pop(template.uuid, None)

    def _lock(self, template: Qube) -> asyncio.Lock:
        return self._locks.setdefault(template.uuid, asyncio.Lock())

    async def _fill(self, template: Qube) -> None:
        async with self._lock(template):
            if self._qubesd.system.qubes.get(template.name) is template:
                try:
                    await self._settle(template)
                except CloisonError as error:
                    log.error("preloaded disposables of %s: %s", template.name, error)

    def _emit(self, template: Qube, name: str, **pairs: object) -> None:
        with self._qubesd.transaction():
            template.journal.emit(template.name, name, **pairs)

    async def _settle(self, template: Qube) -> None:
        """Remove what is not good or too many, then fill up."""
        names = preloaded(template)
        good = [name for name in names if self._is_good(name)]
        await self.drop(template, [name for name in names if name not in good[:plan.maximum(template)]])
        count = plan.wanted(template, self._qubesd.system.host.free_memory())
        await asyncio.gather(*(self._preload(template) for _ in range(count)))

    def _is_good(self, name: str) -> bool:
        qube = self._qubesd.system.qubes.get(name)
        return qube is not None and plan.is_good(qube, outdated=self._is_outdated(qube))

    def _is_outdated(self, qube: Qube) -> bool:
        """Also one whose volumes can't be asked: it is not for use."""
        try:
            return any(self._qubesd.is_outdated(qube, volume) for volume in qube.volumes.values())
        except StorageError as error:
            log.error("preloaded disposable %s: %s", qube.name, error)
            return True

    async def _preload(self, template: Qube) -> None:
        """One more, if all goes well. One that fails is not tried again until something else wakes us."""
        qubesd = self._qubesd
        try:
            qube = await qubesd.create_disposable(template, None)
        except CloisonError as error:
            log.error("no disposable of %s could be preloaded: %s", template.name, error)
            return
        with qubesd.transaction():
            qube.set_feature(plan.IN_PROGRESS, "1")
            template.set_feature(plan.LIST, " ".join([*preloaded(template), qube.name]))
            qube.set_feature("internal", "1")
        try:
            await qubesd.start(qube)
            for service in plan.services(qube):
                await qubesd.service(qube, service)
            await qubesd.pause(qube)
            with qubesd.transaction():
                qube.set_feature(plan.COMPLETED, "1")
                qube.set_feature(plan.IN_PROGRESS, "")
        except CloisonError as error:
            log.error("%s could not be preloaded: %s", qube.name, error)
            await self.drop(template, [qube.name])

    async def drop(self, template: Qube, names: Iterable[str]) -> None:
        """Off the list first, then gone."""
        names = list(names)
        if not names:
            return
        with self._qubesd.transaction():
            drop_preloaded(template, names)
        for name in names:
            qube = self._qubesd.system.qubes.get(name)
            if qube is not None and qube.template is template:
                await self._end(qube)

    async def _end(self, qube: Qube) -> None:
        try:
            if qube.is_halted:
                await self._qubesd.discard(qube)
            else:
                await self._qubesd.kill(qube)       # its stop removes it
        except CloisonError as error:
            log.error("preloaded disposable %s could not be removed: %s", qube.name, error)

    async def drop_all(self, reason: str) -> None:
        """Of every template."""
        for template in self._qubesd.system.sorted_qubes():
            if preloaded(template):
                log.info("preloaded disposables of %s go: %s", template.name, reason)
                await self.drop(template, preloaded(template))

    # -- use ------------------------------------------------------------------------------------------------------

    async def take(self, template: Qube, source: Qube) -> Qube | None:
        """One that is ready, running; None if there is none for this source."""
        system = self._qubesd.system
        gap = plan.gap(template)
        if gap is not None:
            self.wake(gap)
        for name in preloaded(template):
            qube = system.qubes.get(name)
            if qube is None or not self._is_good(name) or not plan.is_for(qube, source, template):
                continue
            self._mark_used(template, qube, source)
            try:
                await self._qubesd.unpause(qube)
            except CloisonError as error:
                log.error("preloaded disposable %s can't be used: %s", name, error)
                await self._end(qube)
                continue
            return qube
        return None

    def _mark_used(self, template: Qube, qube: Qube, source: Qube | None) -> None:
        """From here on it is a disposable like any other; the list has a gap, which is filled after the delay.

        Without a source nobody has asked for it: somebody has just let it run.
        """
        with self._qubesd.transaction():
            drop_preloaded(template, [qube.name])
            if "internal" in template.features:
                qube.set_feature("internal", template.features["internal"])
            elif "internal" in qube.features:
                qube.remove_feature("internal")
            if source is None:
                qube.set_feature(plan.IN_PROGRESS, "")
            else:
                if plan.IN_PROGRESS in qube.features:
                    qube.remove_feature(plan.IN_PROGRESS)
                for tag in (f"created-by-{source.name}", f"disp-created-by-{source.name}"):
                    qube.add_tag(tag)
            template.journal.emit(template.name, "domain-preload-dispvm-used", dispvm=qube.name, delay=plan.delay(template))

    async def _used_by_hand(self, qube: Qube) -> None:
        template = qube.template
        if template is not None and qube.name in preloaded(template):
            self._mark_used(template, qube, None)

    # -- after a restart ------------------------------------------------------------------------------------------

    async def recover(self, *, fill: bool) -> None:
        """Drop what was under way or has ended; `fill` up again."""
        for template in self._qubesd.system.sorted_qubes():
            names = preloaded(template)
            await self.drop(template, [name for name in names if not self._survived(name)])
            if fill and (names or plan.maximum(template)):
                self.wake(Wake(template.name, "the system starts"))

    def _survived(self, name: str) -> bool:
        try:
            qube = self._qubesd.system.qube(name)
        except QubeNotFound:
            return False
        return qube.power is PowerState.PAUSED and plan.COMPLETED in qube.features
