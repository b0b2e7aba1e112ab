"""The live system: model, store, events, pools and machines in one place, and the making and removing of qubes.

Model and store change together in `transaction()`. What a crash leaves between two transactions is mended by `recovery`.
"""
from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import string
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

import cloison
from cloison.admin.qubesd import NewQube, Qubesd, Send
from cloison.daemon import qubes_xml
from cloison.daemon.attachments import Attachments
from cloison.daemon.devices import Devices
from cloison.daemon.events import EventBus, Listener
from cloison.daemon.live import Live
from cloison.daemon.machines import Machines
from cloison.daemon.parts import Parts
from cloison.daemon.preload import Preloads
from cloison.daemon.visibility import Visibility
from cloison.daemon.volumes import Volumes
from cloison.errors import CloisonError, MachineError, StorageError
from cloison.model import creation, facts
from cloison.model.creation import Birth
from cloison.model.devices import Assignment, Device
from cloison.model.domains import CREATING, READY, REMOVING, Qube, System
from cloison.model.exposed import Exposed
from cloison.model.qubes import new_system
from cloison.model.volumes import Volume
from cloison.plan import lifecycle
from cloison.plan.preload import Wake
from cloison.qrexec.policyd.policy_files import LivePolicy, folders
from cloison.runtime import faults
from cloison.storage.base import Pool, VolumeConfig

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_TOKENS = 256
LOGIN, LOGIN_TIME = "cloison.Console", 10.0        # the guest's service, and s it may take
_TOKEN = string.ascii_letters + string.digits
_DISPID_REST = 7 * 24 * 3600        # s until a disposable's number is given again


class App(Qubesd):
    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.system: System = new_system(parts.host)
        self.drivers = parts.drivers
        self.tokens: dict[str, tuple[str, str]] = {}
        self.imports: dict[tuple[str, str], int] = {}
        self.changing_pools = asyncio.Lock()
        self.asleep: set[str] = set()
        self.suspended: set[str] = set()
        self.cache: dict[str, str] = {}
        self.events = EventBus()
        self.visibility = Visibility(self.system, LivePolicy(folders(parts.paths)), self.system_info)
        self.volumes = Volumes(self, parts)
        self.devices = Devices(self)
        self.attachments = Attachments(self, parts.wardens, self.devices, parts.paths)
        self.machines = Machines(self, parts, self.volumes, self.attachments)
        self.live = Live(self, parts.wardens, self.devices, self.attachments)
        self.preloads = Preloads(self)
        self.machines.on_qdb_change = self.live.qdb_changed
        self.devices.on_added = self.attachments.appeared
        self._locks: dict[str, asyncio.Lock] = {}
        self._used_dispids: deque[tuple[float, int]] = deque()

    # -- model ----------------------------------------------------------------------------------------------------

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Changes made inside are stored and announced, or never were. Never awaits inside."""
        journal = self.system.journal
        try:
            yield
            rows, events = journal.rows, journal.events
            if rows:
                self.parts.store.write(rows)
        except BaseException:
            journal.undo()
            raise
        journal.clear()
        if any(map(facts.changes_facts, events)):
            self.cache.clear()
        self.events.publish(events)
        self.live.follow(events)
        self.preloads.follow(events)

    def lock(self, qube: Qube) -> asyncio.Lock:
        return self._locks.setdefault(qube.uuid, asyncio.Lock())

    def allows(self, source: Qube, method: str, target: Qube) -> bool:
        return self.visibility.allows(source, method, target.name)

    def system_info(self) -> str:
        text = self.cache.get("system_info")
        if text is None:
            text = self.cache["system_info"] = facts.system_info(self.system)
        return text

    def listen(self, source: Qube, subject: str | None, send: Send) -> Callable[[], None]:
        return self.events.add(Listener(subject, send, partial(self.visibility.allows_event, source)))

    # -- making qubes ------------------------------------------------------------------------------------------------

    def choose_kernel(self) -> None:
        """The newest installed kernel is the default until somebody chooses one."""
        if "default_kernel" not in self.system.values:
            versions = self.parts.kernels.versions()
            if versions:
                with self.transaction():
                    self.system.store_value("default_kernel", versions[-1])

    async def create(self, order: NewQube, source: Qube) -> Qube:
        self.choose_kernel()
        dispid = self._free_dispid() if order.klass == "DispVM" else None
        return await self._make(Birth(
            order.klass, order.name, order.label, self.parts.host.new_uuid(), CREATING, template=order.template, dispid=dispid,
            pool=order.pool, pools=order.pools, tags=(f"created-by-{source.name}",),
        ))

    async def create_disposable(self, template: Qube, source: Qube | None) -> Qube:
        lifecycle.check_disposable(template)
        dispid = self._free_dispid()
        values: dict[str, Any] = {"auto_cleanup": True}
        bound, netvm = (False, None) if source is None else lifecycle.child_netvm(source, template)
        if bound:
            values["netvm"] = netvm
        tags = () if source is None else (f"created-by-{source.name}", f"disp-created-by-{source.name}")
        return await self._make(Birth(
            "DispVM", f"disp{dispid}", str(template.get("label")), self.parts.host.new_uuid(), CREATING, template=template.name,
            dispid=dispid, values=values,
        ), late_tags=tags)

    async def take_preloaded(self, template: Qube, source: Qube) -> Qube | None:
        return await self.preloads.take(template, source)

    def preload(self, template: Qube) -> None:
        self.preloads.wake(Wake(template.name, "it was asked for"))

    async def drop_preloaded(self, reason: str) -> None:
        await self.preloads.drop_all(reason)

    async def _make(self, birth: Birth, late_tags: tuple[str, ...] = ()) -> Qube:
        """Store the order, make the volumes, store that it is done; late tags are for what is done."""
        with self.transaction():
            qube = creation.create(self.system, birth)
            on_disk = self.volumes.kept(qube)
            if not on_disk:
                self._finish(qube, late_tags)
        if on_disk:
            faults.point("create:after-store")
            await self._make_volumes(qube, late_tags)
        return qube

    async def _make_volumes(self, qube: Qube, late_tags: tuple[str, ...]) -> None:
        async with self.lock(qube):
            try:
                await self.volumes.create(qube)
                faults.point("create:after-volumes")
                with self.transaction():
                    self._finish(qube, late_tags)
            except Exception:
                await self.discard(qube)
                raise

    def _finish(self, qube: Qube, tags: tuple[str, ...]) -> None:
        qube.set_state(READY)
        if qube.kind.machine:
            qube.journal.emit(qube.name, "domain-create-on-disk")
        for tag in tags:
            qube.add_tag(tag)

    def _free_dispid(self) -> int:
        """Random, of no living disposable and of none that was removed these days. Raises CloisonError if all are taken."""
        now = self.parts.host.now()
        while self._used_dispids and self._used_dispids[0][0] < now - _DISPID_REST:
            self._used_dispids.popleft()
        taken = {dispid for _, dispid in self._used_dispids}
        taken |= {qube.dispid for qube in self.system.qubes.values() if qube.dispid is not None}
        for _ in range(10000):
            dispid = self.parts.host.new_dispid()
            if dispid not in taken and f"disp{dispid}" not in self.system.qubes:
                return dispid
        raise CloisonError("all numbers for disposables are taken")

    # -- removing them -------------------------------------------------------------------------------------------------

    async def remove(self, qube: Qube) -> None:
        lifecycle.check_remove(qube)
        await self.preloads.drop(qube, creation.preloaded(qube))
        async with self.lock(qube):
            await self.machines.settled(qube)
            if self.system.qubes.get(qube.name) is not qube:
                return
            lifecycle.check_remove(qube)
            await self._remove(qube)

    async def _remove(self, qube: Qube) -> None:
        """From the first transaction on the qube is doomed: a crash only delays its end."""
        kept = self.volumes.kept(qube)
        if kept:
            with self.transaction():
                qube.set_state(REMOVING)
            faults.point("remove:after-store")
        await self.discard(qube)

    async def discard(self, qube: Qube) -> None:
        """Drop a qube that does not run: files first, so that what the store does not know is nowhere."""
        if self.system.qubes.get(qube.name) is not qube:
            return
        try:
            await self.volumes.remove(qube)
        except StorageError as error:
            log.error("files of removed qube %s may be left: %s", qube.name, error)
        faults.point("remove:after-volumes")
        with self.transaction():
            creation.forget(qube)
        self._locks.pop(qube.uuid, None)
        self.asleep.discard(qube.uuid)
        self.tokens = {token: place for token, place in self.tokens.items() if place[0] != qube.uuid}
        if qube.dispid is not None:
            self._used_dispids.append((self.parts.host.now(), qube.dispid))

    # -- machines ------------------------------------------------------------------------------------------------------

    async def start(self, qube: Qube, lease: socket.socket | None = None) -> str:
        return await self.machines.start(qube, lease)

    async def shutdown(self, qube: Qube, *, force: bool, wait: bool) -> None:
        await self.machines.shutdown(qube, force=force, wait=wait)

    async def kill(self, qube: Qube) -> None:
        await self.machines.kill(qube)

    async def pause(self, qube: Qube) -> None:
        await self.machines.pause(qube)

    async def unpause(self, qube: Qube) -> None:
        await self.machines.unpause(qube)

    async def stopped(self, qube: Qube) -> None:
        await self.machines.stopped(qube)

    async def console(self, qube: Qube) -> str:
        """With a login on it, where the guest has an agent that answers; one that does not is looked at all the same."""
        terminal = await self.parts.wardens.console(qube.uuid)
        try:
            await asyncio.wait_for(self.service(qube, LOGIN), LOGIN_TIME)
        except (MachineError, TimeoutError) as error:
            log.info("no login on the console of %s: %s", qube.name, error or "its agent does not answer")
        return terminal

    async def qdb_read(self, qube: Qube, prefix: str) -> dict[str, bytes]:
        return await self.parts.wardens.qdb_read(qube.uuid, prefix)

    async def exposed(self, qube: Qube, devclass: str) -> list[Exposed]:
        return await self.devices.exposed(qube, devclass)

    async def attached(self, qube: Qube) -> list[Assignment]:
        return await self.attachments.of(qube)

    async def attach(self, qube: Qube, device: Exposed, options: Mapping[str, str]) -> None:
        await self.attachments.attach(qube, device, options)

    async def detach(self, qube: Qube, pattern: Device) -> None:
        await self.attachments.detach(qube, pattern)

    async def service(self, qube: Qube, service: str) -> None:
        await self.parts.wardens.service(qube.uuid, service, b"")

    def usage(self, qube: Qube) -> tuple[int, int]:
        usage = self.parts.wardens.usage(qube.uuid)
        return usage.memory, usage.cpu_time

    async def autostart(self) -> None:
        """Start what is to run with the system, netvms first, then preload. One that fails does not hold up the rest."""
        for name in lifecycle.autostart_order(self.system):
            try:
                await self.start(self.system.qube(name))
            except CloisonError as error:
                log.error("%s was not started: %s", name, error)
        await self.preloads.recover(fill=True)

    # -- volumes and the rest --------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        return self.volumes.pool(name)

    def volume_config(self, qube: Qube, volume: Volume) -> VolumeConfig:
        return self.volumes.config(volume)

    async def grow(self, qube: Qube, volume: Volume, *, file_system: bool) -> None:
        await self.volumes.grow(qube, volume, file_system=file_system)

    async def copy_volume(self, volume: Volume, config: VolumeConfig, source: Volume, source_config: VolumeConfig) -> None:
        await self.volumes.in_thread(self.volumes.copy, volume, config, source, source_config)

    def is_outdated(self, qube: Qube, volume: Volume) -> bool:
        return self.volumes.is_outdated(qube, volume)

    async def in_storage(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.volumes.in_thread(do, *args, **kwargs)

    async def open_pool(self, name: str, driver: str, config: Mapping[str, str]) -> None:
        await self.volumes.open_pool(name, driver, config)

    async def close_pool(self, name: str) -> None:
        await self.volumes.close_pool(name)

    def new_token(self) -> str:
        while len(self.tokens) >= MAX_TOKENS:
            self.tokens.pop(next(iter(self.tokens)))
        return "".join(secrets.choice(_TOKEN) for _ in range(32))

    async def import_qubes_xml(self, path: str) -> list[str]:
        self.choose_kernel()
        return await qubes_xml.take_over(self, self.volumes, await asyncio.to_thread(qubes_xml.read, path))

    async def seal_root(self, qube: Qube, path: str) -> None:
        self.choose_kernel()
        await self.volumes.seal_root(qube, path)
        self.machines.prepare(qube)

    async def status(self) -> dict[str, Any]:
        running = [qube for qube in self.system.sorted_qubes() if qube.kind.machine and not qube.is_halted]
        starts = {qube.name: how for qube in running if (how := self.machines.starts.get(qube.uuid))}
        return {"qubes": [qube.name for qube in running], "starts": starts, "warm_images": self.parts.wardens.warm_images(),
                "accelerator": await asyncio.to_thread(self.parts.accelerator),
                "version": cloison.__version__}
