"""Takes over a qubes.xml into a system without qubes (reference/admin-api.md 17).

The model is stored in one transaction, with every qube that has disks marked as being imported; then the disks are made. A
daemon that comes up after a crash in between goes on with that: nothing is half there for long, and nothing is lost.
"""
from __future__ import annotations

import os
import stat

from cloison.admin.qubesd import Qubesd
from cloison.daemon.volumes import Volumes
from cloison.errors import CloisonError
from cloison.model import qubesxml, qubesxml_elements
from cloison.model.domains import IMPORTING, READY, Qube
from cloison.model.resettle import resettle
from cloison.runtime import faults


def read(path: str) -> bytes:
    """Raises CloisonError for what is no file of a bearable size."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise CloisonError(f"{path} is not a file")
            return file.read(qubesxml_elements.MAX_BYTES + 1)
    except OSError as error:
        raise CloisonError(f"{path} can't be read: {error.strerror}") from error


async def take_over(qubesd: Qubesd, volumes: Volumes, untrusted: bytes) -> list[str]:
    """Returns what was left out or mended, a sentence each. Raises BadQubesXml, StorageError; then nothing has changed."""
    system = qubesd.system
    own, default = set(system.pools), str(system.get("default_pool"))
    with qubesd.transaction():
        remarks = qubesxml.load(system, untrusted)
        remarks += resettle(system, own, default)
        imported = [qube for qube in system.qubes.values() if volumes.kept(qube)]
        for qube in imported:
            qube.set_state(IMPORTING)
        for qube in system.sorted_qubes()[1:]:
            system.journal.emit("", "domain-add", vm=qube.name)
    faults.point("import:after-store")
    for qube in imported:
        async with qubesd.lock(qube):
            await make_disks(qubesd, volumes, qube)
    return remarks


async def make_disks(qubesd: Qubesd, volumes: Volumes, qube: Qube) -> None:
    """Empty ones, whatever of them a crash may have left. The caller holds the qube's lock."""
    await volumes.remove(qube)
    await volumes.create(qube)
    faults.point("import:after-volumes")
    with qubesd.transaction():
        qube.set_state(READY)
