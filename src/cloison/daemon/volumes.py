"""The volumes of qubes and the open pools: what the model says, done by the drivers, in threads."""
from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from cloison.admin.qubesd import Qubesd
from cloison.daemon.parts import Parts
from cloison.errors import CloisonError, MachineError, QubeNotHalted, StorageError, StoreError
from cloison.model.domains import Qube
from cloison.model.volumes import Volume
from cloison.plan.volumes import WITH_FILE_SYSTEM, leaves_nothing
from cloison.runtime import holders
from cloison.storage import base
from cloison.storage.base import DamagedImage, Kind, Pool, VolumeConfig, explained
from cloison.storage.images import copy_content
from cloison.wire.warden import DiskSource

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)
MAX_THREADS = 64                # that wait for disks, all at once
LOOKED_AT = 1.0                 # s: an image that is only being asked about is open no longer than that


class Volumes:
    """Whatever touches a disk is done in a thread of its own kind (`in_thread`): a pool on a disk that hangs holds up those who
    use it, and not the daemon.
    """

    def __init__(self, qubesd: Qubesd, parts: Parts) -> None:
        self._qubesd, self._parts = qubesd, parts
        self._threads = ThreadPoolExecutor(MAX_THREADS, "storage")
        self._open: dict[str, Pool] = {}
        self._closed: dict[str, str] = {}                   # name -> why that pool can't be used (yet)
        self.folders: dict[str, str] = {}                   # name -> where that pool really is, of those that have answered
        self._commits: dict[tuple[str, str], str] = {}      # (uuid, volume) -> commit a running snapshot was taken of

    async def in_thread(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(do, *args, **kwargs))

    async def sparing(self, pool: Pool, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """A change that takes next to no space, or gives some back: on a full disk it may use what was kept back for it."""
        def help_() -> T:
            return self._parts.store.reserves.helps(pool.folder, partial(do, *args, **kwargs), StorageError)

        return await self.in_thread(help_)

    def volume_folders(self) -> list[str]:
        """Where the pools are that volumes are kept in, of those that have answered."""
        return [self.folders[name] for name in self._open]

    # -- pools ----------------------------------------------------------------------------------------------------

    def pool(self, name: str) -> Pool:
        """Raises StorageError."""
        try:
            return self._open[name]
        except KeyError:
            why = self._closed.get(name, "it holds no volumes of qubes")
            raise StorageError(f"pool {name} can't be used: {why}") from None

    async def open_pool(self, name: str, driver: str, config: Mapping[str, str]) -> None:
        """Raises CloisonError, StorageError; `pool` says the same from then on, and before that it has not answered yet."""
        self._closed[name] = "it has not answered yet"
        try:
            folder, pool = await self.in_thread(self._found, name, driver, config)
            twin = next((other for other in self._open if self.folders[other] == folder), None)
            if pool is not None and twin is not None:
                raise StorageError(f"pool {twin} is kept in {folder} already")
            self.folders[name] = folder
            if pool is not None:
                await self.in_thread(pool.setup)
                self._open[name] = pool
                await self.in_thread(self._parts.store.reserves.keep, [folder])       # a qube may fill that disk at once
        except CloisonError as error:
            self.folders.pop(name, None)
            self._closed[name] = str(error)
            raise
        del self._closed[name]

    def _found(self, name: str, driver: str, config: Mapping[str, str]) -> tuple[str, Pool | None]:
        """Where the pool really is, and the pool; None for one that holds kernels."""
        if driver not in self._parts.drivers:
            raise CloisonError(f"it needs the driver {driver}, which this version does not have")
        folder = os.path.realpath(config["dir_path"])
        if driver != "linux-kernel":
            return folder, self._parts.drivers[driver].open(name, config)
        if folder != os.path.realpath(self._parts.paths.kernels):
            raise CloisonError(f"kernels are kept in {self._parts.paths.kernels} and nowhere else")
        return folder, None

    def is_usable(self, qube: Qube) -> bool:
        """Whether all pools that hold something of it have answered."""
        return all(volume.pool in self._open for volume in self._stored(qube))

    async def close_pool(self, name: str) -> None:
        """Take back what the pool made for itself. What can't be taken back stays, and harms nobody."""
        self._closed.pop(name, None)
        self._parts.store.reserves.drop(self.folders.pop(name, ""))
        pool = self._open.pop(name, None)
        if pool is not None:
            try:
                await self.in_thread(pool.destroy)
            except StorageError as error:
                log.warning("%s", error)

    # -- volumes --------------------------------------------------------------------------------------------------

    def config(self, volume: Volume) -> VolumeConfig:
        """As a driver knows it."""
        if volume.save_on_stop:
            kind = Kind.ORIGIN
        elif volume.snap_on_start:
            kind = Kind.SNAPSHOT
        else:
            kind = Kind.VOLATILE if volume.rw else Kind.READONLY
        keep = volume.revisions_to_keep
        if keep is None:
            pool = self._qubesd.system.pools.get(volume.pool)
            keep = int(pool.config.get("revisions_to_keep", "1")) if pool else 1
        return VolumeConfig(volume.vid, volume.name, kind, volume.size, volume.source, keep)

    def kept(self, qube: Qube) -> list[Volume]:
        """The volumes that have files of their own."""
        return [volume for volume in qube.volumes.values() if volume.save_on_stop]

    def _stored(self, qube: Qube) -> list[Volume]:
        return [volume for volume in qube.volumes.values() if volume.name != "kernel"]

    async def create(self, qube: Qube) -> None:
        """Raises StorageError, with nothing left."""
        await self.in_thread(self._create, self.kept(qube))

    def _create(self, volumes: list[Volume]) -> None:
        """New and empty, whatever an earlier qube of that name may have left where its pool was away."""
        for volume in volumes:
            pool, config = self.pool(volume.pool), self.config(volume)
            pool.remove(config)
            pool.create(config)

    async def remove(self, qube: Qube) -> None:
        """All that can be; raises the first StorageError then. What is in a pool that is away stays there, and is logged."""
        volumes = self.kept(qube)
        if volumes:
            await self.in_thread(self._each, self._remove, volumes)

    def _remove(self, volume: Volume) -> None:
        if volume.pool not in self._open:
            log.error("files of volume %s stay where they are: pool %s can't be used", volume.vid, volume.pool)
            return
        pool, config = self.pool(volume.pool), self.config(volume)
        self._parts.store.reserves.helps(pool.folder, partial(pool.remove, config), StorageError)

    def _each(self, do: Callable[[Volume], None], volumes: list[Volume]) -> None:
        """One that fails does not stop the rest. Raises the first StorageError."""
        failed: StorageError | None = None
        for volume in volumes:
            try:
                do(volume)
            except StorageError as error:
                failed = failed or error
        if failed is not None:
            raise failed

    async def start(self, qube: Qube) -> tuple[DiskSource, ...]:
        """The disks of a qube that starts, without the kernel's modules. Raises StorageError, with all stopped again."""
        volumes = self._stored(qube)
        try:
            disks = await self.in_thread(self._start, volumes, leaves_nothing(qube))
        except StorageError:
            await self.stop(qube)
            raise
        self._commits.update({(qube.uuid, disk.role): disk.commit for disk in disks if qube.volumes[disk.role].snap_on_start})
        return disks

    def _start(self, volumes: list[Volume], ephemeral: bool) -> tuple[DiskSource, ...]:
        disks = [self._start_one(volume) for volume in volumes]
        return tuple(replace(disk, ephemeral=ephemeral and disk.writable and disk.top is None) for disk in disks)

    def _start_one(self, volume: Volume) -> DiskSource:
        """What its guest may not write to is opened by nobody for writing. No system runs on a root like that, and no kernel
        mounts a journal that a kill left open: what is written to these two goes to a throw-away overlay.
        """
        pool, config = self.pool(volume.pool), self.config(volume)
        if volume.rw:
            return pool.start(config)
        if not volume.save_on_stop and not volume.snap_on_start:
            return replace(pool.start(replace(config, kind=Kind.VOLATILE)), writable=False)
        kind = Kind.SNAPSHOT if volume.name in WITH_FILE_SYSTEM else Kind.READONLY
        return pool.start(replace(config, kind=kind, source=volume.source or volume.vid))

    async def stop(self, qube: Qube) -> None:
        """Commit what is kept, drop the rest. Raises StorageError after trying all; a volume that failed stays dirty."""
        for volume in self._stored(qube):
            self._commits.pop((qube.uuid, volume.name), None)
        before = await self.in_thread(self.root_commit, qube)
        if self.kept(qube):
            await self.in_thread(self._each, self._stop, self.kept(qube))
        await self.follow_pool(qube)
        if before is not None and await self.in_thread(self.root_commit, qube) != before:
            await self._parts.wardens.forget_warm([before])

    def _stop(self, volume: Volume) -> None:
        pool, config = self.pool(volume.pool), self.config(volume)
        self._parts.store.reserves.helps(pool.folder, partial(pool.stop, config), StorageError)

    async def save_left(self, volume: Volume) -> None:
        """Commit what a halted qube's last stop could not, before it is replaced: it becomes a revision. An image that is damaged
        can't, and is left to whoever replaces it. Raises StorageError.
        """
        with suppress(DamagedImage):
            await self.in_thread(self._stop, volume)

    async def spare_revisions(self, qube: Qube) -> None:
        """The session under way is worth no revision of the private volume. Raises StorageError."""
        for volume in self.kept(qube):
            if volume.name == "private":
                await self.in_thread(self.pool(volume.pool).spare_revisions, self.config(volume))

    async def is_dirty(self, qube: Qube) -> bool:
        """Whether a volume was started and not stopped. Raises StorageError."""
        return await self.in_thread(self._is_dirty, self.kept(qube))

    def _is_dirty(self, volumes: list[Volume]) -> bool:
        return any(self.pool(volume.pool).is_dirty(self.config(volume)) for volume in volumes)

    async def held(self, qube: Qube) -> list[str]:
        """Images of its volumes that are in use and that some process has open, as the kernel counts. A pool that can't be asked
        has none that could be committed or removed either.
        """
        return await self.in_thread(self._held, self.kept(qube))

    def _held(self, volumes: list[Volume]) -> list[str]:
        found = []
        for volume in volumes:
            with suppress(StorageError):
                pool, config = self.pool(volume.pool), self.config(volume)
                path = pool.path(config) if pool.is_dirty(config) else ""
                if path and _is_open(path):
                    found.append(path)
        return found

    async def stay_held(self, qube: Qube) -> bool:
        """The same for longer than a killed process's takes to be closed."""
        return await self.in_thread(lambda: not all(holders.closed_within(path, base.HELD) for path in self._held(self.kept(qube))))

    async def end_holders(self, qube: Qube) -> bool:
        """Kill whatever has an image of it open. False when something has, and it can't be found."""
        return await self.in_thread(self._end_holders, self.kept(qube))

    def _end_holders(self, volumes: list[Volume]) -> bool:
        for path in self._held(volumes):
            pids = holders.who(path)
            if not pids:
                if not holders.closed_within(path, LOOKED_AT):
                    return False
                continue                         # it was we ourselves, who asked in another thread
            log.warning("killing what has %s open: %s", path, ", ".join(map(str, pids)))
            for pid in pids:
                holders.end(pid, path)
        return True

    def take_over(self, qube: Qube, commits: Mapping[str, str]) -> None:
        """A qube that an earlier qubesd started: disk -> the commit that it is a snapshot of."""
        self._commits.update({(qube.uuid, name): commit for name, commit in commits.items() if name in qube.volumes})

    def root_commit(self, qube: Qube) -> str | None:
        """Id of the present commit of a root volume of its own; None if it has none (yet)."""
        root = qube.volumes.get("root")
        if root is None or not root.save_on_stop:
            return None
        try:
            return self.pool(root.pool).commit_id(self.config(root))
        except StorageError:
            return None

    async def as_of_a_child(self, template: Qube) -> tuple[DiskSource, ...]:
        """Disks of a qube that this template is the root of: what its warm image depends on, with no private content."""
        root = template.volumes["root"]
        child = VolumeConfig(f"{root.vid}-child", "root", Kind.SNAPSHOT, root.size, root.vid)
        disk = await self.in_thread(self.pool(root.pool).start, child)
        others = (template.volumes[name] for name in ("private", "volatile"))
        return (disk, *(DiskSource(volume.name, volume.size) for volume in others))

    # -- content and size -------------------------------------------------------------------------------------------

    def copy(self, volume: Volume, config: VolumeConfig, source: Volume, source_config: VolumeConfig) -> None:
        """Make the committed state of `source` the volume's new commit. Between pools it is copied, holes kept."""
        pool, other = self.pool(volume.pool), self.pool(source.pool)
        if pool is other:
            return pool.clone(config, source_config)
        path = other.export_begin(source_config)
        try:
            _fill(pool, config, path, other.size(source_config))
        finally:
            other.export_end(source_config, path)

    async def grow(self, qube: Qube, volume: Volume, *, file_system: bool) -> None:
        """The disk first, then what is on it. Either failing costs nothing: the next start of the qube does it."""
        try:
            await self._parts.wardens.resize(qube.uuid, volume.name, volume.size)
            if file_system:
                await self._parts.wardens.service(qube.uuid, "qubes.ResizeDisk", f"{volume.name}\n{volume.size}\n".encode())
        except MachineError as error:
            raise StorageError(f"volume {volume.name} of {qube.name} has {volume.size} bytes from its next start on, "
                               f"but could not be grown while the qube runs: {error}") from error

    async def follow_pool(self, qube: Qube) -> None:
        """Take over the sizes that the pools know: a crash may have come between a pool's change and the model's, and what
        a snapshot had grown to is gone with it. A volume that can't be read is left to its next start, which says so.
        """
        for volume in [each for each in qube.volumes.values() if each.save_on_stop or each.snap_on_start]:
            with suppress(StorageError):
                size = await self.in_thread(self.pool(volume.pool).size, self.config(volume))
                if size != volume.size:
                    self.note_size(qube, volume, size)

    def note_size(self, qube: Qube, volume: Volume, size: int) -> None:
        """The pool knows better. A store that can't be written gets it later."""
        try:
            with self._qubesd.transaction(f"volume {volume.name} of {qube.name} has {size} bytes"):
                qube.resize_volume(volume.name, size)
        except StoreError as error:
            log.error("%s", error)

    def is_outdated(self, qube: Qube, volume: Volume) -> bool:
        taken = self._commits.get((qube.uuid, volume.name))
        return taken is not None and taken != self.pool(volume.pool).commit_id(self.config(volume))

    async def seal_root(self, qube: Qube, path: str) -> None:
        """Make the image the root's new commit. Raises StorageError, QubeNotHalted."""
        tmp = os.path.realpath(self._parts.paths.tmp)
        if os.path.dirname(os.path.realpath(path)) != tmp and not os.path.realpath(path).startswith(tmp + os.sep):
            raise StorageError(f"an image to seal must lie below {tmp}")
        async with self._qubesd.lock(qube):
            if not qube.is_halted:
                raise QubeNotHalted(f"{qube.name} is {qube.power}: shut it down before sealing its root")
            root = qube.volumes["root"]
            before = await self.in_thread(self.root_commit, qube)
            pool, config = self.pool(root.pool), self.config(root)
            self._qubesd.check_store()
            size = await self.in_thread(_take, pool, config, path)
            if before is not None:
                await self._parts.wardens.forget_warm([before])
            with self._qubesd.transaction(f"volume root of {qube.name} has its new content"):
                qube.resize_volume("root", size)
                qube.journal.emit(qube.name, "domain-template-sealed")


def _is_open(path: str) -> bool:
    """Also where that can't be found out."""
    try:
        return holders.is_open(path)
    except OSError:
        return True


def _take(pool: Pool, config: VolumeConfig, path: str) -> int:
    """A raw file becomes the volume's new commit and is gone then; the volume's new size. From another file system it is copied.
    Raises StorageError.
    """
    with explained("can't take an image"):
        size, near = os.stat(path).st_size, os.stat(path).st_dev == os.stat(pool.folder).st_dev
    if near:
        pool.import_file(config, path, format="raw")
    else:
        _fill(pool, config, path, size)
        os.unlink(path)
    return pool.size(config)


def _fill(pool: Pool, config: VolumeConfig, path: str, size: int) -> None:
    """Copy a file of at most `size` bytes into the volume as its new commit."""
    target = pool.import_begin(config, size)
    try:
        copy_content(path, target)
    except BaseException:
        pool.import_end(config, ok=False)
        raise
    pool.import_end(config, ok=True)
