"""Machines of qubes: carries out start plans and undoes them on failure, follows what wardens report, cleans up after a stop.

A qube's lock is held while it starts. A stop is handled by a task of its own, whoever caused it; a start or a removal
waits for that first (`settled`).
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable
from typing import Any

from cloison.admin.qubesd import Qubesd
from cloison.daemon.attachments import Attachments
from cloison.daemon.parts import Parts
from cloison.daemon.power import COMPUTED, Power, set_halted
from cloison.daemon.starts import Starts
from cloison.daemon.volumes import Volumes
from cloison.daemon.waiting import Waiting
from cloison.daemon.wardens import Adopted
from cloison.errors import BadUuid, CloisonError, MachineError, QubeNotFound, ShutdownTimeout, StorageError, StoreError
from cloison.model import deferred
from cloison.model.domains import Qube
from cloison.plan import lifecycle, processes
from cloison.plan.processes import Known
from cloison.runtime import faults
from cloison.runtime.say import say_in
from cloison.runtime.tasks import Tasks
from cloison.values import PowerState
from cloison.wire.agent import NO_PRIVATE

log = logging.getLogger(__name__)
LOOK_AGAIN = 1.0            # s until disks that are held are looked at again


class Machines:
    def __init__(self, qubesd: Qubesd, parts: Parts, volumes: Volumes, attachments: Attachments) -> None:
        self._qubesd, self._parts, self._volumes, self._attachments = qubesd, parts, volumes, attachments
        self._wardens, self._power = parts.wardens, Power(qubesd)
        self.beginning = Starts(qubesd, parts, volumes, attachments, settled=self.settled, running=self._begun,
                                ended=lambda uuid: self.on_event(uuid, "stopped", {}), held=self.take_held)
        self.launches = self.beginning.launches
        self.waiting = Waiting()
        self._wardens.on_event = self.on_event
        self.on_qdb_change: Callable[[Qube, str], None] = _ignore
        self._stopping: dict[str, asyncio.Task[None]] = {}
        self._halted: dict[str, asyncio.Event] = {}             # set when the stop has been handled
        self.starts: dict[str, str] = {}                        # uuid -> warm or cold, of those started since qubesd runs
        self._tasks = Tasks()              # `close` waits for them
        self._closing = asyncio.Event()

    async def close(self) -> None:
        """Wait for stops that are being handled; touch no machine. Warm images in the making are given up."""
        self._closing.set()
        self.launches.close()
        await self._tasks.settled()

    async def start(self, qube: Qube, lease: socket.socket | None = None) -> str:
        """Returns `warm` or `cold`; nothing to do for a qube that is not halted. Raises what forbids or prevents it."""
        return await self.beginning.start(qube, lease)

    def _begun(self, qube: Qube, how: str) -> None:
        """Its machine runs."""
        self.starts[qube.uuid] = how
        self._halted[qube.uuid] = asyncio.Event()

    # -- what wardens report ------------------------------------------------------------------------------------------

    def on_event(self, uuid: str, event: str, detail: dict[str, Any]) -> None:
        """Called by the wardens. A start under way handles its own end."""
        try:
            qube = self._qubesd.system.qube_by_uuid(uuid)
        except (QubeNotFound, BadUuid):
            log.warning("event %s from a qube that is not known", event)
            return
        if event == "running":
            self._note(qube, str(detail.get("note") or ""))
        if event in ("halting", "running"):
            self._progress(qube, event)
        elif event in ("silent", "answers", "killed", "ending"):
            self._heard_of(qube, event)
        elif event in ("space-wanted", "space-back"):
            self._space(qube, event, detail)
        elif event == "broken":
            log.error("the machine of %s can't go on (%s): it is ended", qube.name, detail.get("why"))
        elif event == "qdb-change":
            self.on_qdb_change(qube, str(detail.get("path")))
        elif event in ("block-attached", "block-lost"):
            self._attachments.reported(qube, event, detail)
        elif event in ("stopped", "failed"):
            self._ended(qube, event, detail)

    def _progress(self, qube: Qube, event: str) -> None:
        if event == "halting" and qube.is_running:
            self._power.set(qube, PowerState.HALTING)
        elif event == "running" and qube.power is PowerState.TRANSIENT and not self.beginning.is_under_way(qube.uuid):
            self._power.set(qube, PowerState.RUNNING, "domain-start", start_guid=True)

    def _heard_of(self, qube: Qube, event: str) -> None:
        """Its warden says nothing, or does so again, or its end takes its time. A start or a stop under way sees to itself."""
        if event == "killed":
            self._tell(qube, "its warden did not end it when told to: its processes were killed from outside")
        elif qube.is_halted or qube.uuid in self._stopping or self.beginning.is_under_way(qube.uuid):
            return
        elif event == "answers":
            log.info("the warden of %s answers again", qube.name)
            self._tell(qube, "its warden answers again")
            self._adopt(qube, self._wardens.found(qube.uuid))
            self._power.emit(qube, "domain-known")
        else:
            self._unknown(qube, Known.SILENT if event == "silent" else Known.ENDING)

    def _unknown(self, qube: Qube, known: Known, *, held: bool = False) -> None:
        problem = processes.problem(known, qube.name, held=held)
        log.error("%s", problem)
        self._tell(qube, problem)
        self._power.set(qube, processes.power(known, qube.power), "domain-unknown", problem=problem, reason=problem)

    def _tell(self, qube: Qube, sentence: str) -> None:
        """In the qube's own log, which its warden writes else: of what that can't tell."""
        say_in(self._parts.paths.qube_log(qube.name), f"{qube.name}: {sentence}")

    def _space(self, qube: Qube, event: str, detail: dict[str, Any]) -> None:
        if event == "space-wanted" and qube.power in (PowerState.RUNNING, PowerState.HALTING) and qube not in self.waiting:
            self._power.set(qube, PowerState.PAUSED, "domain-paused")
            self.waiting.begin(qube, str(detail.get("where")))
            self._power.emit(qube, "domain-space-wanted", where=detail.get("where"))
        elif event == "space-back" and self.waiting.end(qube):
            log.info("%s goes on: there is disk space again", qube.name)
            halting = detail.get("state") == "halting"
            self._power.set(qube, PowerState.HALTING if halting else PowerState.RUNNING, "domain-unpaused")

    def _note(self, qube: Qube, untrusted: str) -> None:
        """What a qube says of itself at its start, for a person who asks how it is. Bounded and printable; its word, not ours."""
        qube.note = f"{qube.name} says: {untrusted}" if untrusted else ""
        if untrusted:
            log.warning("%s says: %s", qube.name, untrusted)
        if NO_PRIVATE in untrusted:
            self._tasks.begin(self._spare_revisions(qube))

    async def _spare_revisions(self, qube: Qube) -> None:
        """What it does to its private volume without having mounted it is to push no older state out. It may lie: then it is its
        own volume whose state before this session is no revision.
        """
        try:
            await self._volumes.spare_revisions(qube)
        except StorageError as error:
            log.error("the revisions of the private volume of %s are not spared: %s", qube.name, error)

    def _ended(self, qube: Qube, event: str, detail: dict[str, Any]) -> None:
        if event == "failed":
            log.error("the machine of %s has failed: %s", qube.name, detail.get("error", "no reason given"))
        if self.beginning.machine_ended(qube.uuid):
            return
        if not qube.is_halted and qube.uuid not in self._stopping:
            self._stopping[qube.uuid] = self._tasks.begin(self._finish_stop(qube))

    async def _finish_stop(self, qube: Qube, *, held: bool = False) -> None:
        """Volumes are committed or dropped, the qube is halted, a disposable is gone."""
        try:
            faults.point("shutdown:after-machine")
            if held and not await self._released(qube):
                return
            self._power.set(qube, PowerState.DYING, problem="")
            if not await self._stop_volumes(qube):
                return
            faults.point("shutdown:after-storage")
            try:
                self._set_halted(qube, deferred.forget)
            except StoreError as error:
                log.error("%s", error)
                self._set_halted(qube)
            await self.beginning.clean_up(qube)
            if qube.klass == "TemplateVM":
                self.launches.prepare(qube)
        finally:
            self._stopping.pop(qube.uuid, None)
            self.starts.pop(qube.uuid, None)
            self.waiting.forget(qube)
            event = self._halted.pop(qube.uuid, None)
            if event is not None:
                event.set()

    async def _stop_volumes(self, qube: Qube) -> bool:
        """False when qubesd ends before they could be: while any process has one open, nobody knows what is written to it."""
        while True:
            try:
                await self._volumes.stop(qube)
                return True
            except StorageError as error:
                if not await self._volumes.held(qube):
                    log.error("volumes of %s were not saved; the next start goes on with them: %s", qube.name, error)
                    return True
            if not await self._released(qube):
                return False

    async def _released(self, qube: Qube) -> bool:
        """Wait until no process has a disk of it open. False when qubesd ends before."""
        if not qube.is_unknown:
            self._unknown(qube, Known.SILENT, held=True)
        while await self._volumes.held(qube):
            with contextlib.suppress(TimeoutError):             # the kernel tells nobody when a file is closed
                await asyncio.wait_for(self._closing.wait(), LOOK_AGAIN)
            if self._closing.is_set():
                return False
        self._power.set(qube, PowerState.DYING, problem="")
        return True

    def take_held(self, qube: Qube) -> None:
        """A qube without a warden whose disks a process has open: its stop is handled when that has let go of them."""
        self._unknown(qube, Known.SILENT, held=True)
        self._halted[qube.uuid] = asyncio.Event()
        self._stopping[qube.uuid] = self._tasks.begin(self._finish_stop(qube, held=True))

    def _set_halted(self, qube: Qube, forget: Callable[[Qube], None] | None = None) -> None:
        """Halted, whatever the store says to what is forgotten with it. Raises StoreError for that only."""
        with self._qubesd.transaction():
            qube.journal.emit(qube.name, "domain-stopped")
            set_halted(qube)
            for name in COMPUTED:
                qube.announce(name)
            if forget is not None:
                forget(qube)
            qube.journal.emit(qube.name, "domain-shutdown")

    async def settled(self, qube: Qube) -> None:
        """Wait until a stop of this qube has been handled, if one is."""
        task = self._stopping.get(qube.uuid)
        if task is not None:
            await asyncio.wait([task])

    async def stopped(self, qube: Qube) -> None:
        event = self._halted.get(qube.uuid)
        if event is not None:
            await event.wait()

    # -- stop, pause --------------------------------------------------------------------------------------------------

    async def shutdown(self, qube: Qube, *, force: bool, wait: bool) -> None:
        if not force:
            self.waiting.check(qube)
        lifecycle.check_shutdown(qube, force=force)
        if await self.beginning.give_up(qube, "was shut down while it started"):
            return
        self._power.emit(qube, "domain-pre-shutdown", force=force)
        halted = self._halted.get(qube.uuid)
        try:
            if qube.power is PowerState.PAUSED:
                await self.kill(qube)
            elif qube.uuid not in self._stopping or qube.is_unknown:        # else its machine has ended already
                await self._wardens.shutdown(qube.uuid)
        except CloisonError as error:
            self._power.emit(qube, "domain-shutdown-failed", reason=error)
            raise
        if qube.is_running:
            self._power.set(qube, PowerState.HALTING)
        if wait and halted is not None:
            timeout = int(qube.get("shutdown_timeout"))
            try:
                await asyncio.wait_for(self.waiting.unless(qube, halted), timeout)
            except TimeoutError:
                late = ShutdownTimeout(f"{qube.name} did not power off within {timeout} s")
                self._power.emit(qube, "domain-shutdown-failed", reason=late)
                raise late from None

    async def kill(self, qube: Qube) -> None:
        """Returns when the stop has been handled."""
        lifecycle.check_kill(qube)
        if await self.beginning.give_up(qube, "was killed while it started"):
            return
        halted = self._halted.get(qube.uuid)
        if qube.uuid in self._wardens.running() or halted is None:
            await self._wardens.kill(qube.uuid)
        while halted is not None and not halted.is_set():
            if qube.is_unknown and not await self._volumes.end_holders(qube):
                raise MachineError(f"no process that has a disk of {qube.name} open can be found and ended")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(halted.wait(), LOOK_AGAIN)

    async def pause(self, qube: Qube) -> None:
        if qube not in self.waiting:
            lifecycle.check_pause(qube)
        self._power.emit(qube, "domain-pre-paused")
        await self._wardens.pause(qube.uuid)
        self.waiting.end(qube)
        self._power.set(qube, PowerState.PAUSED, "domain-paused")

    async def unpause(self, qube: Qube) -> None:
        lifecycle.check_unpause(qube)
        self._power.emit(qube, "domain-pre-unpaused")
        try:
            await self._wardens.unpause(qube.uuid)
        except MachineError:
            self.waiting.check(qube)
            raise
        if qube.power is PowerState.PAUSED:         # else its warden has said so already
            self.waiting.end(qube)
            self._power.set(qube, PowerState.RUNNING, "domain-unpaused")

    # -- take over ----------------------------------------------------------------------------------------------------

    async def adopt(self) -> None:
        """Take over the machines that run. One that the store does not know is ended."""
        strangers = []
        for found in await self._wardens.adopt():
            try:
                qube = self._qubesd.system.qube_by_uuid(found.uuid)
            except QubeNotFound:
                log.error("a machine of a qube that is not known runs (%s); it is ended", found.name or found.uuid)
                self.beginning.next_xid = max(self.beginning.next_xid, found.xid + 1)
                strangers.append(found.uuid)
                continue
            self._halted[qube.uuid] = asyncio.Event()
            qube.start_time = self._parts.host.now()
            self._adopt(qube, found)
        await asyncio.gather(*map(self._end_stranger, strangers))

    def _adopt(self, qube: Qube, found: Adopted) -> None:
        """Its machine is like that."""
        self.beginning.next_xid = max(self.beginning.next_xid, found.xid + 1)
        qube.xid = found.xid or qube.xid
        if found.unknown:
            self._unknown(qube, Known.ENDING if found.state is PowerState.DYING else Known.SILENT)
        else:
            self._power.set(qube, found.state, problem="")
            self.waiting.end(qube)
            if found.space:
                self.waiting.begin(qube, found.space)
            self._volumes.take_over(qube, found.commits)
            self._attachments.adopt(qube, found.blocks)
            self._note(qube, found.note)

    async def _end_stranger(self, uuid: str) -> None:
        try:
            await self._wardens.kill(uuid)
        except MachineError as error:
            log.error("it could not be ended: %s", error)


def _ignore(_qube: Qube, _path: str) -> None:
    """Until somebody listens."""
