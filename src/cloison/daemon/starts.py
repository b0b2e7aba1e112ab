"""Starts of qubes: a plan carried out step by step, and undone whole when it fails or is given up.

A qube is Transient from the first step on: whoever looks sees that something is under way, kill and shutdown reach it, and to
remove it is refused at once. Each start is a task of its own. It is given up when somebody kills the qube, and when whoever waits
for it has gone; the next one in line begins it again. What it had begun has ended before its qube is Halted: the maker of a warm
image, a machine, a thread that makes disks ready.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable

from cloison.admin.qubesd import Qubesd
from cloison.daemon.attachments import Attachments
from cloison.daemon.launches import Launches
from cloison.daemon.parts import Parts
from cloison.daemon.power import COMPUTED, Power, set_halted
from cloison.daemon.volumes import Volumes
from cloison.errors import CloisonError, MachineError, QubeError, QubeNotFound, StorageError
from cloison.model.domains import CREATING, REMOVING, Qube
from cloison.plan import lifecycle
from cloison.plan.lifecycle import COLD, Do
from cloison.runtime import faults
from cloison.runtime.whole import whole
from cloison.values import PowerState
from cloison.wire.warden import DiskSource

log = logging.getLogger(__name__)
GIVE_UP_TIME = 10.0         # s until who kills a starting qube is told that something does not end
GONE = "its start was given up"


class _Start:
    """One that is under way."""

    def __init__(self) -> None:
        self.task: asyncio.Task[str] | None = None
        self.why = ""           # it was given up
        self.up = False         # its machine runs: there is nothing to undo any more
        self.ended = False      # its machine has ended before the start returned


class Starts:
    """`settled`: waits until a stop of that qube has been handled. `running`: told of each qube whose machine runs, and how.
    `held`: told of a qube that some process still has a disk of when its start is undone: it is not halted.
    """

    def __init__(
        self, qubesd: Qubesd, parts: Parts, volumes: Volumes, attachments: Attachments, *,
        settled: Callable[[Qube], Awaitable[None]], running: Callable[[Qube, str], None], ended: Callable[[str], None],
        held: Callable[[Qube], None],
    ) -> None:
        self._qubesd, self._parts, self._volumes, self._attachments = qubesd, parts, volumes, attachments
        self._wardens, self._power = parts.wardens, Power(qubesd)
        self._settled, self._running, self._ended, self._held = settled, running, ended, held
        self.launches = Launches(parts, volumes)
        self._under_way: dict[str, _Start] = {}         # by uuid
        self.next_xid = 1
        self.check_space: Callable[[Qube], Awaitable[None]] = _enough

    async def start(self, qube: Qube, lease: socket.socket | None = None) -> str:
        """Returns `warm` or `cold`; nothing to do for a qube that is not halted. Raises what forbids or prevents it."""
        self._check(qube)
        before = self._under_way.get(qube.uuid)
        async with self._qubesd.lock(qube):
            if before is not None and before.why:
                raise QubeError(f"{qube.name} {before.why}")
            await self._settled(qube)
            if self._qubesd.system.qubes.get(qube.name) is not qube:
                raise QubeNotFound(f"there is no qube {qube.name} any more")
            steps = lifecycle.plan_start(qube)
            if not steps:
                return COLD
            start = self._under_way[qube.uuid] = _Start()
            start.task = asyncio.get_running_loop().create_task(self._carry_out(start, qube, steps, lease))
            try:
                return await start.task             # who is cancelled here cancels it, and waits until it is undone
            finally:
                del self._under_way[qube.uuid]
                if start.ended:
                    self._ended(qube.uuid)

    def is_under_way(self, uuid: str) -> bool:
        return uuid in self._under_way

    def machine_ended(self, uuid: str) -> bool:
        """Whether that is a matter of a start that is under way, which takes it from here."""
        start = self._under_way.get(uuid)
        if start is not None:
            start.ended = True
        return start is not None

    async def give_up(self, qube: Qube, why: str) -> bool:
        """End a start that is under way, and return when it is undone; False if there is none, or it was done by then.

        `why`: as the end of a sentence about the qube. Raises MachineError when something of it does not end.
        """
        start = self._under_way.get(qube.uuid)
        if start is None or start.task is None or start.up or start.task.done():
            return False
        start.why = why
        start.task.cancel()
        done, _ = await asyncio.wait({start.task}, timeout=GIVE_UP_TIME)
        if not done:
            raise MachineError(f"{qube.name} is being ended, but its disks or its machine do not answer")
        return not start.up

    def _check(self, qube: Qube) -> None:
        """Raises what forbids the start, and tells those who wait for it."""
        try:
            lifecycle.check_start(qube)
        except CloisonError as error:
            if qube.is_halted:
                self._refused(qube, error, begun=not qube.features.get("prohibit-start"))
            raise

    def _refused(self, qube: Qube, error: CloisonError, *, begun: bool) -> None:
        """Only a qube that may not be started at all was never about to."""
        if begun:
            self._power.emit(qube, "domain-pre-start", start_guid=True, mem_required=None)
        self._power.emit(qube, "domain-start-failed", reason=error)

    # -- carried out ------------------------------------------------------------------------------------------------

    async def _carry_out(self, start: _Start, qube: Qube, steps: list[lifecycle.Step], lease: socket.socket | None) -> str:
        self._power.set(qube, PowerState.TRANSIENT)
        try:
            await self._check_ready(qube)
            how = await self._run(qube, steps, lease)
            start.up = True
        except asyncio.CancelledError:
            await whole(self._undo(qube, QubeError(f"{qube.name} {start.why or GONE}")))
            if start.why:
                raise QubeError(f"{qube.name} {start.why}") from None
            raise
        except Exception as error:
            await whole(self._undo(qube, error))
            raise
        await self._attachments.attach_wanted(qube)
        return how

    async def _check_ready(self, qube: Qube) -> None:
        try:
            await self.check_space(qube)
            await self._attachments.check_required(qube)
        except CloisonError:
            self._power.emit(qube, "domain-pre-start", start_guid=True, mem_required=None)
            raise

    async def _run(self, qube: Qube, steps: list[lifecycle.Step], lease: socket.socket | None) -> str:
        self._power.emit(qube, "domain-pre-start", start_guid=True, mem_required=None)
        self._power.emit(qube, "domain-verify-files")
        disks: tuple[DiskSource, ...] = ()
        warm: str | None = None
        for step in steps:
            if step.do is Do.START_NETVM:
                await self.start(self._qubesd.system.qube(step.qube))
            elif step.do is Do.START_VOLUMES:
                disks = await whole(self._volumes.start(qube))
                faults.point("start:after-storage")
            elif step.do is Do.MAKE_WARM:
                warm = await self._wardens.ensure_warm(await self.launches.build(qube, disks), lambda text: log.info("%s", text))
            else:
                return await self._boot(qube, disks, warm, lease)
        return COLD

    async def _boot(self, qube: Qube, disks: tuple[DiskSource, ...], warm: str | None, lease: socket.socket | None) -> str:
        with self._qubesd.transaction():
            qube.journal.emit(qube.name, "domain-pre-spawn", start_guid=True)
            qube.xid, qube.start_time = self._new_xid(), self._parts.host.now()
            for name in COMPUTED:
                qube.announce(name)
            qube.journal.emit(qube.name, "domain-spawn", start_guid=True)
        how = await self._wardens.start(await self.launches.build(qube, disks, warm), lease)
        faults.point("start:after-machine")
        await self._attachments.attach_required(qube)
        self._running(qube, how)
        self._power.set(qube, PowerState.RUNNING, "domain-qdb-create", "domain-pre-unpaused", "domain-unpaused")
        self._power.emit(qube, "domain-start", start_guid=True)
        return how

    def _new_xid(self) -> int:
        xid = self.next_xid
        self.next_xid += 1
        return xid

    async def _undo(self, qube: Qube, error: Exception) -> None:
        """Nothing of it runs; its volumes stop; the qube is halted as before, and a disposable is gone. What does not end, or has
        a disk open although nobody knows why, leaves the qube unknown: its stop is handled when the disks are free.
        """
        if qube.uuid in self._wardens.running():
            with contextlib.suppress(MachineError):         # it has ended meanwhile
                await self._wardens.kill(qube.uuid)
        try:
            await self._volumes.stop(qube)
        except StorageError as problem:
            log.error("volumes of %s could not be stopped: %s", qube.name, problem)
            if await self._volumes.held(qube):
                self._power.emit(qube, "domain-start-failed", reason=error)
                self._held(qube)
                return
        with self._qubesd.transaction():
            set_halted(qube)
            qube.journal.emit(qube.name, "domain-start-failed", reason=error)
        await self.clean_up(qube)

    async def clean_up(self, qube: Qube) -> None:
        """A disposable goes with its machine, and so does what was half made or half removed. One that can't goes with qvm-remove,
        or when qubesd starts again.
        """
        if qube.get_or_none("auto_cleanup") or qube.state in (CREATING, REMOVING):
            try:
                await self._qubesd.discard(qube)
            except CloisonError as error:
                log.error("%s could not be removed: %s", qube.name, error)


async def _enough(_qube: Qube) -> None:
    """Until somebody looks at the disks."""
