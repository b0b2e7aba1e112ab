"""The live system: model, store, events, pools and machines in one place; the work is done by the parts.

Model and store change together in `transaction()`. What a crash leaves between two transactions is mended by `recovery`.
"""
from __future__ import annotations

import asyncio
import logging
import secrets
import socket
import string
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, ParamSpec, TypeVar

import cloison
from cloison.admin.qubesd import NewQube, Qubesd, Send
from cloison.daemon import host_services, qubes_xml
from cloison.daemon.agents import Agents
from cloison.daemon.attachments import Attachments
from cloison.daemon.devices import Devices
from cloison.daemon.events import EventBus, Listener
from cloison.daemon.live import Live
from cloison.daemon.machines import Machines
from cloison.daemon.making import Making
from cloison.daemon.parts import Parts
from cloison.daemon.preload import Preloads
from cloison.daemon.space import Found, Space
from cloison.daemon.visibility import Visibility
from cloison.daemon.volumes import Volumes
from cloison.devicetext import Device
from cloison.errors import CloisonError, MachineError, StoreError
from cloison.model import facts
from cloison.model.devices import Assignment
from cloison.model.domains import Qube, System
from cloison.model.exposed import Exposed
from cloison.model.journal import Row
from cloison.model.qubes import new_system
from cloison.model.volumes import Volume
from cloison.plan import lifecycle
from cloison.plan.preload import Wake
from cloison.qrexec.policyd.policy_files import LivePolicy, folders
from cloison.runtime.tasks import Tasks
from cloison.storage.base import Pool, VolumeConfig

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_TOKENS = 256
NOTHING_CHANGED = "; nothing was changed"
_SERVICE_EVENTS = ("domain-feature-set:service.", "domain-feature-delete:service.")
LOGIN, LOGIN_TIME = "cloison.Console", 10.0        # the guest's service, and s it may take
_TOKEN = string.ascii_letters + string.digits


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
        self.making = Making(self, parts, self.volumes, self.machines, self.preloads)
        self.machines.on_qdb_change = self.live.qdb_changed
        self.devices.on_added = self.attachments.appeared
        self._locks: dict[str, asyncio.Lock] = {}
        self._owed: dict[tuple[Qube, str], None] = {}           # volumes that are not in the store as they are
        self.space = Space(self._space_folders, self._tell_space, parts.store.reserves, self.volumes.in_thread)
        self.machines.beginning.check_space = self._check_space
        self.agents = Agents()
        self.recovering = Tasks()        # what the start has begun, and did not wait for to its end

    # -- model ----------------------------------------------------------------------------------------------------

    def sync_services(self) -> None:
        """Failing harms nobody but who looks for one: it is logged."""
        try:
            host_services.sync(self.parts.paths.services, self.system.dom0.features)
        except OSError as error:
            log.error("services of the host: %s", error)

    @contextmanager
    def transaction(self, done: str = "") -> Iterator[None]:
        """Changes made inside are stored and announced, or never were. Never awaits inside. For `done` see `Qubesd`."""
        journal, failure = self.system.journal, None
        try:
            yield
            rows, events = journal.rows, journal.events
            if rows:
                failure = self._store(rows, done)
        except BaseException:
            journal.undo()
            raise
        journal.clear()
        if any(map(facts.changes_facts, events)):
            self.cache.clear()
        self.events.publish(events)
        if any(event.subject == self.system.dom0.name and event.name.startswith(_SERVICE_EVENTS) for event in events):
            self.sync_services()
        self.live.follow(events)
        self.preloads.follow(events)
        if failure is not None:
            raise failure

    def _store(self, rows: list[Row], done: str) -> StoreError | None:
        """Write them, and what an earlier change owes. Raises StoreError; returns it for what is done all the same."""
        qubes = {qube.qid: qube for qube in self.system.qubes.values()}
        owed = [Row("volumes", qube.qid, name, qube.volumes[name]) for qube, name in self._owed if qubes.get(qube.qid) is qube]
        try:
            self.parts.store.write([*rows, *owed])
        except StoreError as error:
            if not done:
                error.and_so = NOTHING_CHANGED
                raise
            self._owed.update(dict.fromkeys((qubes[row.owner], row.key) for row in rows if row.table == "volumes"))
            later = "what is not in it yet is written with the next change, or found out when qubesd starts"
            failure = StoreError(f"{done}, but {error}; {later}")
            failure.hint = error.hint
            return failure
        self._owed.clear()
        return None

    def check_store(self) -> None:
        try:
            self.parts.store.check()
        except StoreError as error:
            error.and_so = NOTHING_CHANGED
            raise

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

    # -- making and removing qubes ------------------------------------------------------------------------------------

    def choose_kernel(self) -> None:
        """The newest installed kernel is the default until somebody chooses one."""
        if "default_kernel" not in self.system.values:
            versions = self.parts.kernels.versions()
            if versions:
                with self.transaction():
                    self.system.store_value("default_kernel", versions[-1])

    async def create(self, order: NewQube, source: Qube) -> Qube:
        self.choose_kernel()
        return await self.making.create(order, source)

    async def create_disposable(self, template: Qube, source: Qube | None) -> Qube:
        return await self.making.create_disposable(template, source)

    async def remove(self, qube: Qube) -> None:
        await self.making.remove(qube)

    async def discard(self, qube: Qube) -> None:
        await self.making.discard(qube)
        self._forget(qube)

    def _forget(self, qube: Qube) -> None:
        """It is removed: nothing of it is kept in memory."""
        self._locks.pop(qube.uuid, None)
        self.asleep.discard(qube.uuid)
        self.suspended.discard(qube.uuid)
        self.imports = {place: size for place, size in self.imports.items() if place[0] != qube.name}
        self._owed = {place: None for place in self._owed if place[0] is not qube}
        self.live.forget(qube)
        self.devices.forget(qube)
        self.preloads.forget(qube)

    async def take_preloaded(self, template: Qube, source: Qube) -> Qube | None:
        return await self.preloads.take(template, source)

    def preload(self, template: Qube) -> None:
        self.preloads.wake(Wake(template.name, "it was asked for"))

    async def drop_preloaded(self, reason: str) -> None:
        await self.preloads.drop_all(reason)

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

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A part of the daemon's start that may take longer than that."""
        return self.recovering.begin(work)

    async def autostart(self) -> None:
        """Start what is to run with the system, netvms first, then preload. One that fails does not hold up the rest; one in a
        pool that has not answered is started when that has.
        """
        names = lifecycle.autostart_order(self.system)
        late = [name for name in names if not self.volumes.is_usable(self.system.qube(name))]
        await self._start_all([name for name in names if name not in late])
        await self.preloads.recover(fill=True)
        while late and self.recovering:
            await asyncio.wait(self.recovering, return_when=asyncio.FIRST_COMPLETED)
            late = [name for name in late if name in self.system.qubes]
            there = [name for name in late if self.volumes.is_usable(self.system.qube(name))]
            await self._start_all(there)
            late = [name for name in late if name not in there]

    async def _start_all(self, names: Iterable[str]) -> None:
        for name in names:
            try:
                await self.start(self.system.qube(name))
            except CloisonError as error:
                log.error("%s was not started: %s", name, error)

    async def close(self) -> None:
        """Give up what the start has begun; the next one begins it again."""
        await self.recovering.end()

    # -- volumes and the rest --------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        return self.volumes.pool(name)

    @property
    def pool_folders(self) -> Mapping[str, str]:
        return self.volumes.folders

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

    async def change_volume(self, do: Callable[[Pool, VolumeConfig], T], pool: Pool, config: VolumeConfig) -> T:
        return await self.volumes.sparing(pool, do, pool, config)

    async def save_left(self, volume: Volume) -> None:
        await self.volumes.save_left(volume)

    async def open_pool(self, name: str, driver: str, config: Mapping[str, str]) -> None:
        await self.volumes.open_pool(name, driver, config)

    async def close_pool(self, name: str) -> None:
        await self.volumes.close_pool(name)

    # -- disk space ------------------------------------------------------------------------------------------------------

    def _space_folders(self) -> list[str]:
        """Where the store is, and where volumes are."""
        return [self.parts.paths.data, *self.volumes.volume_folders()]

    def _tell_space(self, found: Found) -> None:
        with self.transaction():
            self.system.journal.emit("", f"space-{found.level.name.lower()}", folder=found.folder, free=found.free)

    async def _check_space(self, qube: Qube) -> None:
        """Raises DiskFull."""
        kept = [self.volumes.folders.get(volume.pool, "") for volume in self.volumes.kept(qube)]
        await self.space.check_start(qube.name, [self.parts.paths.data, *kept])

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
        self.machines.launches.prepare(qube)

    async def status(self) -> dict[str, Any]:
        running = [qube for qube in self.system.sorted_qubes() if qube.kind.machine and not qube.is_halted]
        starts = {qube.name: how for qube in running if (how := self.machines.starts.get(qube.uuid))}
        problems = {qube.name: text for qube in running if (text := "; ".join(filter(None, (qube.problem, qube.note))))}
        return {"qubes": [qube.name for qube in running], "problems": problems, "space": self.space.warnings(), "starts": starts,
                "warm_images": self.parts.wardens.warm_images(), "accelerator": await asyncio.to_thread(self.parts.accelerator),
                "old_agents": await self.agents.older(self.system), "version": cloison.__version__}
