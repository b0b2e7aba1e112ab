"""What the daemon does before it listens: open pools, take over machines, mend what a crash left (reference/admin-api.md 7.4).

A qube that was being made is undone, one that was being removed goes, one that was being imported is finished; volumes of
qubes that do not run are stopped, so that what a power loss left dirty is committed; disposables that do not run are removed.

A pool on a disk that hangs is not waited for longer than POOL_TIME: its qubes are mended when it answers.
"""
from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence

from cloison.daemon import menus, qubes_xml, rpc_links
from cloison.daemon.app import App
from cloison.errors import CloisonError, HostError, StorageError, StoreError
from cloison.model import deferred, labels
from cloison.model.catalogue import SYSTEM
from cloison.model.domains import IMPORTING, READY, Qube, System
from cloison.model.journal import Row
from cloison.model.volumes import Pool
from cloison.qrexec.policyd.policy_files import folders, make_folders
from cloison.runtime import faults, log_file
from cloison.runtime.paths import Paths

log = logging.getLogger(__name__)
DEFAULT_POOL, KERNEL_POOL = "varlibqubes", "linux-kernel"
POOL_TIME = 5.0         # s that all pools together may hold up the daemon's start, once to open and once to mend


async def bring_up(app: App) -> None:
    """Raises StoreError; a single qube's trouble is logged and left to its next start."""
    store, system = app.parts.store, app.system
    _make_policy_folders(app.parts.paths)
    rpc_links.make(app.parts.paths)
    if store.is_empty():
        _check_no_volumes(app.parts.paths)
        with app.transaction():
            # dom0's own row first, which the others hang on: all of a fresh system is stored, or nothing.
            system.journal.rows.append(Row("qubes", system.dom0.qid, system.dom0.name, system.dom0))
            furnish(system, app.parts.paths)
            faults.point("furnish:before-store")
    else:
        store.load(system)
    _follow_data_folder(app)
    opening = {pool.name: app.begin(_open_pool(app, pool)) for pool in system.pools.values()}
    await _wait(app, "open")
    _break_network_loops(system)
    await app.machines.adopt()
    await app.attachments.ready()
    for pools, qubes in _by_pools(app).items():
        app.begin(_mend_all(app, [opening[pool] for pool in pools if pool in opening], qubes))
    await _wait(app, "mend")
    app.sync_services()
    await app.preloads.recover(fill=False)
    menus.sweep(app.parts.paths, app.system.qubes)
    log_file.sweep(app.parts.paths.qube_logs, app.system.qubes)
    app.live.watch_expiry()
    app.choose_kernel()


def _follow_data_folder(app: App) -> None:
    """After the data folder was moved or copied, its own pools are the ones in it: a copy must not write into the original's."""
    paths, system = app.parts.paths, app.system
    for name, here in ((DEFAULT_POOL, paths.pool), (KERNEL_POOL, paths.kernels)):
        before = system.pools[name].config.get("dir_path", here) if name in system.pools else here
        tail = os.sep + os.path.relpath(here, paths.data)
        if before != here and before.endswith(tail) and os.path.isdir(here):
            log.warning("pool %s was in %s; the data folder has moved, so it is in %s now", name, before, here)
            with app.transaction():
                system.configure_pool(name, dir_path=here)


def _check_no_volumes(paths: Paths) -> None:
    """A store that was lost must not be taken for a fresh system: its volumes would belong to nobody. Raises StoreError."""
    for group in ("appvms", "vm-templates"):
        folder = os.path.join(paths.pool, group)
        if os.path.isdir(folder) and os.listdir(folder):
            raise StoreError(f"the store {paths.store} is missing or empty, but {folder} holds volumes of qubes")


def _make_policy_folders(paths: Paths) -> None:
    """Without them there is no policy, and no qube sees anything. Raises HostError."""
    try:
        make_folders(folders(paths))
    except OSError as error:
        raise HostError(f"the folders for policy can't be made: {error}") from error


def furnish(system: System, paths: Paths) -> None:
    """A fresh system: eight labels, two pools, a black dom0."""
    for label in labels.DEFAULTS:
        system.journal.put("labels", SYSTEM, system.labels, label.name, label)
    config = {"dir_path": paths.pool, "revisions_to_keep": "1", "ephemeral_volatile": "False"}
    system.put_pool(Pool(DEFAULT_POOL, "qcow2", config))
    system.put_pool(Pool(KERNEL_POOL, "linux-kernel", {"dir_path": paths.kernels}))
    system.store_value("default_pool_kernel", KERNEL_POOL)
    system.dom0.store_value("label", "black")


async def _wait(app: App, what: str) -> None:
    """For what is under way, but for no disk that hangs."""
    if app.recovering:
        await asyncio.wait(app.recovering, timeout=POOL_TIME)
    if app.recovering:
        log.warning("a pool takes long to %s: what is in it can't be used until it answers", what)


async def _open_pool(app: App, pool: Pool) -> None:
    try:
        await app.volumes.open_pool(pool.name, pool.driver, pool.config)
    except CloisonError as error:
        log.error("pool %s can't be used: %s", pool.name, error)


def _by_pools(app: App) -> dict[frozenset[str], list[Qube]]:
    """Halted qubes by the pools that they are kept in: who is in the same ones waits for the same disks anyway."""
    groups: dict[frozenset[str], list[Qube]] = {}
    for qube in app.system.qubes.values():
        if qube.kind.machine and qube.is_halted:
            groups.setdefault(frozenset(volume.pool for volume in qube.volumes.values()), []).append(qube)
    return groups


async def _mend_all(app: App, opening: Sequence[asyncio.Task[None]], qubes: Sequence[Qube]) -> None:
    """When their pools have answered. The daemon may serve by then: each is locked, and left alone if somebody was faster."""
    if opening:
        await asyncio.wait(opening)
    for qube in qubes:
        async with app.lock(qube):
            if app.system.qubes.get(qube.name) is qube and qube.is_halted:
                await _mend(app, qube)


def _break_network_loops(system: System) -> None:
    """None can be made through the Admin API; a store from elsewhere may hold one."""
    for qube in list(system.qubes.values()):
        if qube.get_or_none("netvm") == qube.name or any(netvm.netvm is qube for netvm in qube.netvms()):
            log.error("the netvm of %s is part of a loop; it is set to none", qube.name)
            qube.values["netvm"] = None


async def _mend(app: App, qube: Qube) -> None:
    """Nothing is done to one whose disks any process has open: unknown is not halted."""
    if await app.volumes.held(qube):
        app.machines.take_held(qube)
        return
    try:
        if qube.state == IMPORTING:
            log.info("making the disks of %s, which was being imported", qube.name)
            await qubes_xml.make_disks(app, app.volumes, qube)
        elif qube.state != READY or qube.get_or_none("auto_cleanup"):
            log.info("removing %s, which was %s", qube.name, "left over" if qube.state == READY else qube.state)
            await app.discard(qube)
            return
        if await app.volumes.is_dirty(qube):
            await app.volumes.stop(qube)
        await app.volumes.follow_pool(qube)
        with app.transaction():
            deferred.forget(qube)
    except (StorageError, StoreError) as error:
        log.error("%s is left as it is: %s", qube.name, error)
