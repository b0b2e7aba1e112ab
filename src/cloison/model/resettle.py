"""A system that was written elsewhere, fitted to this machine: its volumes get a place in a pool that is here.

Disks are not in a qubes.xml, so a pool of another machine means nothing here. Every volume is made new, empty, of its size.
"""
from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from cloison.model.domains import DOM0, System
from cloison.model.volumes import Volume, folder


def resettle(system: System, pools: Collection[str], default: str) -> list[str]:
    """Move all volumes of pools that are not among `pools` to `default`, and forget those pools. Returns remarks."""
    gone = [pool for pool in system.pools.values() if pool.name not in pools]
    moved = _move_volumes(system, {pool.name for pool in gone}, default)
    remarks = [f"pool {pool.name} of driver {pool.driver} is not taken over: {moved[pool.name]} volumes are made in {default}"
               for pool in gone]
    for prop in [prop for prop in system.values if prop.startswith("default_pool")]:
        if system.values[prop] not in pools:
            remarks.append(f"property {prop} is unset now: pool {system.values[prop]} is not taken over")
            system.journal.drop(system.table, system.owner, system.values, prop)
    for pool in gone:
        system.drop_pool(pool.name)
    made = sum(1 for qube in system.qubes.values() if any(volume.save_on_stop for volume in qube.volumes.values()))
    if made:
        remarks.append(f"the disks of {made} qubes are made empty: restore a backup to fill them")
    return remarks


def _move_volumes(system: System, gone: set[str], default: str) -> dict[str, int]:
    """Volumes get the names that this system would give them; snapshots follow what they are taken of. Counts by old pool."""
    places = {}
    for qube in system.qubes.values():
        for volume in qube.volumes.values() if qube.name != DOM0 else ():
            pool = default if volume.pool in gone else volume.pool
            places[volume.pool, volume.vid] = (pool, f"{folder(qube.klass, qube.name)}/{volume.name}")
    moved = dict.fromkeys(gone, 0)
    for qube in system.qubes.values():
        for volume in list(qube.volumes.values()):
            new = _moved(volume, places, gone, default)
            if new != volume:
                qube.put_volume(new)
            if volume.pool in gone:
                moved[volume.pool] += 1
    return moved


def _moved(volume: Volume, places: dict[tuple[str, str], tuple[str, str]], gone: set[str], default: str) -> Volume:
    pool = default if volume.pool in gone else volume.pool
    if volume.name == "kernel":
        return replace(volume, pool=pool)
    pool, vid = places[volume.pool, volume.vid]
    source = volume.source
    if source is not None:
        pool, source = places.get((volume.pool, source), (pool, source))
    return replace(volume, pool=pool, vid=vid, source=source)
