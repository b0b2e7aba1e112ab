"""What may be done to a volume, and when: the rules of the Admin API's volume calls (reference/admin-api.md 5.8, 7.4).

Pure: each check raises what forbids the call, before anything is touched.
"""
from __future__ import annotations

import enum

from cloison.errors import BadValue, QubeError, QubeNotHalted, QubeNotRunning, StorageError
from cloison.model.domains import Qube
from cloison.model.volumes import Pool, Volume
from cloison.plan import lifecycle
from cloison.values import PowerState

MAX_KEPT = 900                      # revisions of one volume
WITH_FILE_SYSTEM = ("root", "private")


class Growth(enum.Enum):
    """What a resize takes besides the pool."""

    OFFLINE = "offline"             # nothing: the next start brings it
    DISK = "disk"                   # the running machine's disk
    FILE_SYSTEM = "file system"     # and then the file system on it, by the guest


def check_saved(qube: Qube, volume: Volume) -> None:
    if not volume.save_on_stop:
        raise StorageError(f"volume {volume.name} of {qube.name} keeps nothing, so it can't take this")


def check_halted(qube: Qube) -> None:
    lifecycle.check_known(qube)
    if qube.kind.machine and not qube.is_halted:
        raise QubeNotHalted(f"{qube.name} is {qube.power}: shut it down first")


def check_revisions(keep: int) -> None:
    """-1 is Qubes OS's word for a volume without snapshots; here it keeps no revision, and loses no other promise."""
    if not -1 <= keep <= MAX_KEPT:
        raise BadValue(f"revisions_to_keep must be -1 (no snapshots) to {MAX_KEPT}")


def check_ephemeral(volume: Volume) -> None:
    if not volume.volatile:
        raise BadValue(f"volume {volume.name} can't be ephemeral: only a volatile, writable one can")


def is_ephemeral(volume: Volume, pool: Pool) -> bool:
    """Whether what is written to the volume is encrypted with a key that nobody keeps."""
    if volume.ephemeral is not None:
        return volume.ephemeral
    return volume.volatile and pool.config.get("ephemeral_volatile") == "True"


def leaves_nothing(qube: Qube) -> bool:
    """Whether that holds for all that the qube throws away at its end, so for changes of its root too: its volatile disk decides.

    Qubes OS's guests write the changes of a root that is thrown away to their volatile disk; here each disk has its own overlay.
    """
    volatile = qube.volumes.get("volatile")
    return volatile is not None and is_ephemeral(volatile, qube.system.pool(volatile.pool))


def plan_resize(qube: Qube, volume: Volume, size: int) -> Growth:
    """Raises what forbids it: volumes only grow, and a guest can only be asked while it runs."""
    place = f"volume {volume.name} of {qube.name}"
    if volume.name == "kernel":
        raise StorageError(f"{place} has no size of its own")
    if not volume.rw:
        raise StorageError(f"{place} is read-only, so it can't grow")
    if size < volume.size:
        raise StorageError(f"{place} has {volume.size} bytes and can't shrink to {size}")
    if qube.is_halted:
        if volume.snap_on_start:
            raise StorageError(f"{place} is made anew of {volume.source} at each start: resize that one, or this one while it runs")
        return Growth.OFFLINE
    lifecycle.check_known(qube)
    if qube.power is PowerState.PAUSED:
        raise QubeNotRunning(f"{qube.name} is paused: its file system can't follow the disk")
    if qube.power is not PowerState.RUNNING:
        raise QubeError(f"{qube.name} is {qube.power}: wait until that is over")
    return Growth.FILE_SYSTEM if volume.name in WITH_FILE_SYSTEM else Growth.DISK
