"""Which devices are exposed now: by running qubes through their QubesDB, and by the host.

What a qube says is read anew for each listing; here is only kept which ports it had, to tell what came and what went.
"""
from __future__ import annotations

import logging

from cloison.admin.qubesd import Qubesd
from cloison.errors import MachineError
from cloison.model.domains import Qube
from cloison.model.exposed import BLOCK_FOLDER, Exposed, block_devices
from cloison.values import PowerState

log = logging.getLogger(__name__)


class Devices:
    def __init__(self, qubesd: Qubesd) -> None:
        self._qubesd = qubesd
        self._seen: dict[str, dict[str, Exposed]] = {}      # uuid -> block devices by port

    async def exposed(self, qube: Qube, devclass: str) -> list[Exposed]:
        """In order of port. A qube that does not run, or does not answer, exposes nothing."""
        if qube is self._qubesd.system.dom0:
            return self._qubesd.system.host.pci_devices() if devclass == "pci" else []
        if devclass != "block" or qube.power not in (PowerState.RUNNING, PowerState.PAUSED) or not qube.kind.machine:
            return []
        try:
            return block_devices(qube.name, await self._qubesd.qdb_read(qube, f"{BLOCK_FOLDER}/"))
        except MachineError as error:
            log.warning("devices of %s can't be listed: %s", qube.name, error)
            return []

    async def changed(self, qube: Qube) -> None:
        """The qube says that its block devices have changed: tell what came and what went."""
        now = {each.device.port: each for each in await self.exposed(qube, "block")}
        before = self._seen.get(qube.uuid, {})
        self._seen[qube.uuid] = now
        with self._qubesd.transaction():
            qube.journal.emit(qube.name, "device-list-change:block")
            for port, each in before.items():
                if port not in now:
                    qube.journal.emit(qube.name, "device-removed:block", port=f"{each.device.backend}:{port}")
            for port, each in now.items():
                if port not in before:
                    qube.journal.emit(qube.name, "device-added:block", device=each.device)

    def forget(self, qube: Qube) -> None:
        """The qube has stopped, and its devices with it."""
        self._seen.pop(qube.uuid, None)
