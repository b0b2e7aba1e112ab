"""Makes qubes and removes them.

The store learns of a qube before there are files of it, and forgets it when there are none: `recovery` mends from that.
"""
from __future__ import annotations

import logging
from collections import deque
from typing import Any

from cloison.admin.qubesd import NewQube, Qubesd
from cloison.daemon import menus
from cloison.daemon.machines import Machines
from cloison.daemon.parts import Parts
from cloison.daemon.preload import Preloads
from cloison.daemon.volumes import Volumes
from cloison.errors import CloisonError, StorageError, StoreError, advice
from cloison.model import creation
from cloison.model.creation import Birth
from cloison.model.domains import CREATING, READY, REMOVING, Qube
from cloison.plan import lifecycle
from cloison.runtime import faults, log_file

log = logging.getLogger(__name__)
_DISPID_REST = 7 * 24 * 3600        # s until a disposable's number is given again


class Making:
    def __init__(self, qubesd: Qubesd, parts: Parts, volumes: Volumes, machines: Machines, preloads: Preloads) -> None:
        self._qubesd, self._parts, self._volumes, self._machines, self._preloads = qubesd, parts, volumes, machines, preloads
        self._used_dispids: deque[tuple[float, int]] = deque()

    async def create(self, order: NewQube, source: Qube) -> Qube:
        dispid = self._free_dispid() if order.klass == "DispVM" else None
        return await self._make(Birth(
            order.klass, order.name, order.label, self._parts.host.new_uuid(), CREATING, template=order.template, dispid=dispid,
            pool=order.pool, pools=order.pools, tags=(f"created-by-{source.name}",), unfinished=order.unfinished,
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
            "DispVM", f"disp{dispid}", str(template.get("label")), self._parts.host.new_uuid(), CREATING, template=template.name,
            dispid=dispid, values=values,
        ), late_tags=tags)

    async def _make(self, birth: Birth, late_tags: tuple[str, ...] = ()) -> Qube:
        """Store the order, make the volumes, store that it is done; late tags are for what is done."""
        with self._qubesd.transaction():
            qube = creation.create(self._qubesd.system, birth)
            on_disk = self._volumes.kept(qube)
            if not on_disk:
                self._finish(qube, late_tags)
        if on_disk:
            faults.point("create:after-store")
            await self._make_volumes(qube, late_tags)
        return qube

    async def _make_volumes(self, qube: Qube, late_tags: tuple[str, ...]) -> None:
        async with self._qubesd.lock(qube):
            try:
                await self._volumes.create(qube)
                faults.point("create:after-volumes")
                with self._qubesd.transaction():
                    self._finish(qube, late_tags)
            except Exception as error:
                try:
                    await self._qubesd.discard(qube)
                except CloisonError as left:
                    log.error("what there is of %s could not be removed: %s", qube.name, left)
                    _not_so(error)
                    failure = StoreError(f"{qube.name} could not be made: {error}. What there is of it never starts, and goes "
                                         f"with qvm-remove or when qubesd starts again")
                    failure.hint = advice(error)
                    raise failure from error
                raise

    def _finish(self, qube: Qube, tags: tuple[str, ...]) -> None:
        qube.set_state(READY)
        if qube.kind.machine:
            qube.journal.emit(qube.name, "domain-create-on-disk")
        for tag in tags:
            qube.add_tag(tag)

    def _free_dispid(self) -> int:
        """Random, of no living disposable and of none that was removed these days. Raises CloisonError if all are taken."""
        now = self._parts.host.now()
        while self._used_dispids and self._used_dispids[0][0] < now - _DISPID_REST:
            self._used_dispids.popleft()
        taken = {dispid for _, dispid in self._used_dispids}
        taken |= {qube.dispid for qube in self._qubesd.system.qubes.values() if qube.dispid is not None}
        for _ in range(10000):
            dispid = self._parts.host.new_dispid()
            if dispid not in taken and f"disp{dispid}" not in self._qubesd.system.qubes:
                return dispid
        raise CloisonError("all numbers for disposables are taken")

    # -- removing them -------------------------------------------------------------------------------------------------

    async def remove(self, qube: Qube) -> None:
        lifecycle.check_remove(qube)
        await self._preloads.drop(qube, creation.preloaded(qube))
        async with self._qubesd.lock(qube):
            await self._machines.settled(qube)
            if self._qubesd.system.qubes.get(qube.name) is not qube:
                return
            lifecycle.check_remove(qube)
            if await self._volumes.stay_held(qube):         # before anything of it goes: it is as it was, and can be killed
                self._machines.take_held(qube)
                lifecycle.check_remove(qube)
            await self._remove(qube)

    async def _remove(self, qube: Qube) -> None:
        """From the first transaction on the qube is doomed: a crash only delays its end."""
        kept = self._volumes.kept(qube)
        if kept:
            with self._qubesd.transaction():
                qube.set_state(REMOVING)
            faults.point("remove:after-store")
        try:
            await self._qubesd.discard(qube)
        except CloisonError as error:
            if not kept:
                raise
            _not_so(error)
            kind = StoreError if isinstance(error, StoreError) else StorageError
            failure = kind(f"{qube.name} is removed but for this: {error}. It never starts again; the rest goes with the next "
                           f"qvm-remove, or when qubesd starts again")
            failure.hint = advice(error)
            raise failure from error

    async def discard(self, qube: Qube) -> None:
        """Drop a qube that does not run: files first, so that what the store does not know is nowhere. Raises StorageError,
        StoreError: then it is still there, and whoever comes next goes on with it.
        """
        if self._qubesd.system.qubes.get(qube.name) is not qube:
            return
        await self._volumes.remove(qube)
        faults.point("remove:after-volumes")
        with self._qubesd.transaction():
            creation.forget(qube)
        menus.remove(self._parts.paths, qube.name)
        log_file.remove(self._parts.paths.qube_log(qube.name))
        self._qubesd.tokens = {token: place for token, place in self._qubesd.tokens.items() if place[0] != qube.uuid}
        if qube.dispid is not None:
            self._used_dispids.append((self._parts.host.now(), qube.dispid))


def _not_so(error: Exception) -> None:
    """That nothing was changed is not true of a call that had more than one change to make."""
    if isinstance(error, StoreError):
        error.and_so = ""
