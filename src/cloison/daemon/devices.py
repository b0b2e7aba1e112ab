"""Which devices are exposed now: by running qubes through their QubesDB, and by the host.

What a qube says is read anew for each listing; here is only kept which ports it had, to tell what came and what went.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace

from cloison.admin.qubesd import Qubesd
from cloison.devicetext import Device
from cloison.errors import MachineError
from cloison.model.domains import Qube
from cloison.model.exposed import BLOCK_FOLDER, USB_FOLDER, Exposed, block_devices, microphone, usb_devices
from cloison.values import PowerState

log = logging.getLogger(__name__)


# What a qube's QubesDB tells of each class of devices.
FOLDERS = {"block": (BLOCK_FOLDER, block_devices), "usb": (USB_FOLDER, usb_devices)}
CLASS_OF = {folder: devclass for devclass, (folder, _) in FOLDERS.items()}


class Devices:
    """`user_of`: who has a device; `on_added`: called with each that has come."""

    def __init__(self, qubesd: Qubesd) -> None:
        self._qubesd = qubesd
        self._seen: dict[tuple[str, str], dict[str, Exposed]] = {}      # (uuid, class) -> by port
        self.user_of: Callable[[Device], Qube | None] = lambda _: None
        self.on_added: Callable[[Exposed], None] = lambda _: None

    async def exposed(self, qube: Qube, devclass: str) -> list[Exposed]:
        """In order of port. A qube that does not run, or does not answer, exposes nothing."""
        if qube is self._qubesd.system.dom0:
            return self._of_the_host(devclass)
        if devclass not in FOLDERS or qube.power not in (PowerState.RUNNING, PowerState.PAUSED) or not qube.kind.machine:
            return []
        folder, read = FOLDERS[devclass]
        try:
            found = read(qube.name, await self._qubesd.qdb_read(qube, f"{folder}/"))
        except MachineError as error:
            log.warning("devices of %s can't be listed: %s", qube.name, error)
            return []
        return [self._with_user(each) for each in found]

    def _of_the_host(self, devclass: str) -> list[Exposed]:
        """It has no block or USB devices for qubes: files and ports of the host are not handed out (decision 0028)."""
        system = self._qubesd.system
        if devclass == "mic":
            return [microphone(system.dom0.name)]
        return system.host.pci_devices() if devclass == "pci" else []

    def _with_user(self, exposed: Exposed) -> Exposed:
        user = self.user_of(exposed.device)
        return exposed if user is None else replace(exposed, facts={**exposed.facts, "attachment": user.name})

    async def changed(self, qube: Qube, folder: str) -> None:
        """The qube says that its devices of a class have changed: tell what came and what went."""
        devclass = CLASS_OF[folder]
        before = self._seen.get((qube.uuid, devclass), {})
        now = await self.remember(qube, devclass)
        gone, came = _without(before, now), _without(now, before)
        with self._qubesd.transaction():
            qube.journal.emit(qube.name, f"device-list-change:{devclass}")
            for each in gone:
                qube.journal.emit(qube.name, f"device-removed:{devclass}", port=f"{each.device.backend}:{each.device.port}")
            for each in came:
                qube.journal.emit(qube.name, f"device-added:{devclass}", device=each.device)
        for each in came:
            self.on_added(each)

    async def remember(self, qube: Qube, devclass: str) -> dict[str, Exposed]:
        """What it has now, by port: what comes later is new."""
        now = {each.device.port: each for each in await self.exposed(qube, devclass)}
        self._seen[qube.uuid, devclass] = now
        return now

    def forget(self, qube: Qube) -> None:
        """The qube has stopped, and its devices with it."""
        for devclass in FOLDERS:
            self._seen.pop((qube.uuid, devclass), None)


def _without(some: Mapping[str, Exposed], others: Mapping[str, Exposed]) -> list[Exposed]:
    """Those of some that others have not, or have another one at that port."""
    return [each for port, each in some.items() if port not in others or others[port].device != each.device]
