"""Block devices of one qube in the hands of another: attached and taken back by hand, by rule, and when their qube goes.

What is attached is the wardens' to know: they tell a qubesd that takes them over, and say when a device is lost. Here is what
they said, and the events of it (reference/devices.md 3 to 5).
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from typing import Any

from cloison.admin.qubesd import Qubesd
from cloison.daemon import device_agent
from cloison.daemon.devices import FOLDERS, Devices
from cloison.daemon.wardens import Wardens
from cloison.devicetext import ANY, UNKNOWN_IDENTITY, Device
from cloison.errors import (
    BadUuid,
    BadValue,
    CloisonError,
    DeviceAlreadyAttached,
    DeviceNotAssigned,
    MachineError,
    PeerError,
    QubeNotFound,
    QubeNotHalted,
    QubeNotRunning,
)
from cloison.model.devices import Assignment
from cloison.model.domains import Qube
from cloison.model.exposed import Exposed
from cloison.plan import devices as plan
from cloison.runtime.paths import Paths
from cloison.runtime.tasks import Tasks
from cloison.values import PowerState
from cloison.wire import blocks
from cloison.wire.blocks import Block

log = logging.getLogger(__name__)
_UP = (PowerState.RUNNING, PowerState.PAUSED)
ASK = "ask-to-attach"
AWAIT, AWAIT_TIME = "cloison.AwaitDisk", 5.0        # the guest's service, and s that an attaching waits for what it says
ANSWER_TIME = 10.0          # s that one warden may hold up the daemon's start
MAX_SETTLING = 32           # devices of one qube that are being given away by rule, or asked about


class Attachments:
    def __init__(self, qubesd: Qubesd, wardens: Wardens, devices: Devices, paths: Paths) -> None:
        self._qubesd, self._wardens, self._devices, self._paths = qubesd, wardens, devices, paths
        self._blocks: dict[str, dict[str, Block]] = {}      # uuid of the frontend -> by name there
        self._coming: set[Block] = set()                    # of these: not there yet
        self._settling: set[Device] = set()                 # ports whose device has come, and is being given away by rule
        self._gone: set[tuple[str, str]] | None = set()     # lost before `adopt` was told of them; None when that is done
        self._tasks = Tasks()
        devices.user_of = self.user_of

    # -- what is attached ----------------------------------------------------------------------------------------------

    def _all(self) -> Iterator[tuple[Qube, Block]]:
        for uuid, held in self._blocks.items():
            for block in held.values():
                yield self._qubesd.system.qube_by_uuid(uuid), block

    def user_of(self, device: Device) -> Qube | None:
        """Who has the device on that port of that qube, or is about to."""
        backend = self._qubesd.system.qubes.get(device.backend)
        return next((qube for qube, block in self._all() if device.devclass == "block" and backend is not None
                     and (block.backend, block.port) == (backend.uuid, device.port)), None)

    async def of(self, qube: Qube) -> list[Assignment]:
        """What the qube has, as `Attached` lists it; the identities are those of what is on the ports now."""
        found = []
        for block in list(self._blocks.get(qube.uuid, {}).values()):
            if block not in self._coming:
                device = await self._device(block)
                rule = plan.covering(qube, device)
                options = {"frontend-dev": block.name, "read-only": "yes" if block.read_only else "no",
                           **({"devtype": "cdrom"} if block.disc else {})}
                mode, frontend = (rule.mode, rule.frontend) if rule else ("manual", qube.name)
                found.append(Assignment(device, mode, options, frontend))
        return found

    async def _device(self, block: Block) -> Device:
        backend = self._qubesd.system.qube_by_uuid(block.backend)
        for each in await self._devices.exposed(backend, "block"):
            if each.device.port == block.port:
                return each.device
        return Device("block", backend.name, block.port, UNKNOWN_IDENTITY)

    # -- by hand -------------------------------------------------------------------------------------------------------

    async def attach(self, qube: Qube, device: Exposed, options: Mapping[str, str]) -> None:
        """To a qube that runs. Raises QubeNotRunning, DeviceAlreadyAttached, BadValue, CloisonError."""
        backend = self._qubesd.system.qube(device.device.backend)
        if qube.power not in _UP:
            raise QubeNotRunning(f"{qube.name} does not run")
        if backend is qube:
            raise BadValue(f"{device.device} is {qube.name}'s own")
        await self._attach(qube, backend, device, options)
        await self._shown(qube, (backend.uuid, device.device.port))

    async def _shown(self, qube: Qube, what: tuple[str, str]) -> None:
        """Until the qube can use it, so that the caller can. It is attached whatever the qube says, and however long it takes."""
        names = [name for name, block in self._blocks.get(qube.uuid, {}).items() if (block.backend, block.port) == what]
        if qube.power is PowerState.RUNNING and names:
            with contextlib.suppress(MachineError, TimeoutError):
                async with asyncio.timeout(AWAIT_TIME):
                    await self._wardens.service(qube.uuid, AWAIT, f"{names[0]}\n".encode())

    async def _attach(self, qube: Qube, backend: Qube, device: Exposed, options: Mapping[str, str]) -> None:
        wanted = plan.block_options(options, device)
        user = self.user_of(device.device)
        if user is not None:
            raise DeviceAlreadyAttached(f"{device.device} is attached to {user.name} already")
        held = self._blocks.setdefault(qube.uuid, {})
        block = Block(plan.frontend_name(held, wanted.name), backend.uuid, device.device.port, wanted.read_only,
                      wanted.disc)
        self._emit(qube, "device-pre-attach:block", device=device.device, options=dict(options))
        held[block.name] = block
        self._coming.add(block)
        try:
            await asyncio.shield(self._spawn(self._wardens.attach(qube.uuid, block)))
        except BaseException as error:
            self._drop(qube, block.name)
            if isinstance(error, MachineError):
                raise CloisonError(f"{device.device} can't be attached to {qube.name}: {error}") from error
            raise
        finally:
            self._coming.discard(block)
        if self._blocks.get(qube.uuid, {}).get(block.name) is not block:
            raise CloisonError(f"{device.device} went away while it was being attached to {qube.name}")
        self._emit(qube, "device-attach:block", device=device.device, options=dict(options))

    async def detach(self, qube: Qube, pattern: Device) -> None:
        """Raises DeviceNotAssigned, QubeNotHalted, CloisonError."""
        found = [each for each in await self.of(qube) if pattern.matches(each.device)]
        if not found:
            raise DeviceNotAssigned(f"{pattern} is not attached to {qube.name}")
        for each in found:
            if any(rule.device.matches(each.device) for rule in plan.rules(qube, "block", "required")):
                raise QubeNotHalted(f"{qube.name} requires {each.device}: it keeps it while it runs")
        for each in found:
            await self._detach(qube, each)

    async def _detach(self, qube: Qube, attached: Assignment) -> None:
        port, name = f"{attached.device.backend}:{attached.device.port}", attached.options["frontend-dev"]
        self._emit(qube, "device-pre-detach:block", port=port)
        try:
            await asyncio.shield(self._spawn(self._wardens.detach(qube.uuid, name)))
        except MachineError as error:
            if self._drop(qube, name) is None:
                return                  # it was lost meanwhile, and that was told
            log.warning("%s of %s: %s", name, qube.name, error)
        else:
            self._drop(qube, name)
        self._emit(qube, "device-detach:block", port=port)

    def _drop(self, qube: Qube, name: str) -> Block | None:
        held = self._blocks.get(qube.uuid, {})
        block = held.pop(name, None)
        if not held:
            self._blocks.pop(qube.uuid, None)
        return block

    def _emit(self, qube: Qube, name: str, **pairs: object) -> None:
        with self._qubesd.transaction():
            qube.journal.emit(qube.name, name, **pairs)

    # -- what wardens say ----------------------------------------------------------------------------------------------

    def adopt(self, qube: Qube, held: Iterable[Block]) -> None:
        """What a qube has that ran before this daemon."""
        for block in held:
            if self._backend(block) is not None and (qube.uuid, block.name) not in (self._gone or ()):
                self._blocks.setdefault(qube.uuid, {})[block.name] = block

    async def ready(self) -> None:
        """All is taken over; which devices are there is known, so that what comes from now on is new."""
        self._gone = None
        for qube in self._qubesd.system.sorted_qubes():
            if qube.kind.machine and qube.power in _UP:
                await self._remember(qube)

    async def _remember(self, qube: Qube) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIME):
                for devclass in FOLDERS:
                    await self._devices.remember(qube, devclass)
        except TimeoutError:
            log.warning("the warden of %s does not say which devices it has", qube.name)

    def reported(self, qube: Qube, event: str, detail: Mapping[str, Any]) -> None:
        """`block-attached`: perhaps for a daemon that is gone; `block-lost`: the device's own qube has gone, or has closed it."""
        if event == "block-lost":
            name = str(detail.get("name"))
            block = self._drop(qube, name)
            if self._gone is not None:
                self._gone.add((qube.uuid, name))
            if block is not None and block not in self._coming:
                self._lost(qube, block)
            return
        try:
            block = blocks.from_json(detail.get("block"))
        except PeerError as error:
            log.warning("the warden of %s makes no sense: %s", qube.name, error)
            return
        backend = self._backend(block)
        if backend is not None and block.name not in self._blocks.get(qube.uuid, {}):
            self._blocks.setdefault(qube.uuid, {})[block.name] = block
            self._emit(qube, "device-attach:block", device=Device("block", backend.name, block.port), options={})

    def _lost(self, qube: Qube, block: Block) -> None:
        backend = self._backend(block)
        if backend is not None and qube.name in self._qubesd.system.qubes:
            self._emit(qube, "device-detach:block", port=f"{backend.name}:{block.port}")

    def _backend(self, block: Block) -> Qube | None:
        try:
            return self._qubesd.system.qube_by_uuid(block.backend)
        except (QubeNotFound, BadUuid):
            return None

    def stopped(self, qube: Qube) -> None:
        """The qube has halted, and with it what was attached to it."""
        for block in self._blocks.pop(qube.uuid, {}).values():
            if block not in self._coming:
                self._lost(qube, block)

    # -- by rule -------------------------------------------------------------------------------------------------------

    async def check_required(self, qube: Qube) -> None:
        """Raises CloisonError for a device without which the qube can't start."""
        for rule in (rule for rule in qube.assignments.values() if rule.mode == "required"):
            if rule.device.devclass != "block":
                raise CloisonError(f"{qube.name} requires {rule.device}, and no {rule.device.devclass} device can be handed to it")
            if not any(rule.device.matches(each.device) for each in await self._there(rule.device.backend)):
                raise CloisonError(f"{qube.name} requires device {rule.device}, which is not there")

    async def _there(self, *backends: str) -> list[Exposed]:
        """The block devices of these qubes (ANY: of all that run)."""
        qubes = self._qubesd.system.sorted_qubes()
        return [each for qube in qubes if qube.power in _UP and (ANY in backends or qube.name in backends)
                for each in await self._devices.exposed(qube, "block")]

    async def attach_required(self, qube: Qube) -> None:
        """While the qube starts. Raises CloisonError for one that it can't have."""
        await self.check_required(qube)
        for claim in await self._claims(qube, "required"):
            await self._attach(qube, self._qubesd.system.qube(claim.device.device.backend), claim.device, claim.rule.options)

    async def attach_wanted(self, qube: Qube) -> None:
        """The qube has started: what else it is to have that is there. What can't be had is left."""
        for claim in await self._claims(qube, "auto-attach", ASK):
            if claim.rule.mode == ASK:
                self._spawn(self._give([claim]))
            else:
                await self._give([claim])

    async def _claims(self, qube: Qube, *modes: str) -> list[plan.Claim]:
        patterns = plan.rules(qube, "block", *modes)
        if not patterns:
            return []
        there = await self._there(*(rule.device.backend for rule in patterns))
        return [claim for claim in plan.wanted(qube, there, *modes) if self.user_of(claim.device.device) is None]

    def appeared(self, device: Exposed) -> None:
        """A qube has a device that it did not have before: perhaps others have a rule for it.

        A qube whose devices come and go without end keeps neither us nor the person busy: once a port at a time, so many ports.
        """
        running = [qube for qube in self._qubesd.system.sorted_qubes() if qube.kind.machine and qube.power in _UP]
        claims = plan.claims(device, running)
        port = device.device._replace(identity=ANY)
        full = sum(each.backend == port.backend for each in self._settling) >= MAX_SETTLING
        if claims and self.user_of(device.device) is None and port not in self._settling and not full:
            self._settling.add(port)
            self._spawn(self._settle(port, claims))

    async def _settle(self, port: Device, claims: list[plan.Claim]) -> None:
        try:
            await self._give(claims)
        finally:
            self._settling.discard(port)

    async def _give(self, claims: list[plan.Claim]) -> None:
        """One claim that need not be asked about is granted; else the person says whose it is."""
        claim = claims[0]
        if len(claims) > 1 or claim.rule.mode == ASK:
            chosen = await self._ask(claims)
            if chosen is None:
                return
            claim = chosen
        try:
            await self.attach(claim.qube, claim.device, claim.rule.options)
        except CloisonError as error:
            log.warning("%s is not attached to %s by itself: %s", claim.device.device, claim.qube.name, error)

    async def _ask(self, claims: list[plan.Claim]) -> plan.Claim | None:
        device = claims[0].device
        by_name = {claim.qube.name: claim for claim in claims}
        icons = {name: str(self._qubesd.system.qube(name).get("icon")) for name in (*by_name, device.device.backend)}
        description = device.facts.get("name") or device.device.port
        question = device_agent.Question(device.device.backend, device.device.port, description, sorted(by_name), icons)
        answer = await device_agent.choose(self._paths, question)
        return by_name.get(answer or "")

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """It goes on when nobody waits for it any more."""
        task = self._tasks.begin(work)
        task.add_done_callback(_taken)
        return task
    async def settled(self) -> None:
        """Until nothing is being attached or asked."""
        await self._tasks.settled()

    async def close(self) -> None:
        """Wait for nobody: wardens finish what they do, and the next daemon hears of it."""
        await self._tasks.end()


def _taken(task: asyncio.Task[None]) -> None:
    """Whoever waited has been told of the failure; nobody may have."""
    if not task.cancelled() and task.exception() is not None:
        log.debug("a device: %s", task.exception())
