"""What a warden is told to launch, gathered from the model and the host; and warm images made before anybody waits for them."""
from __future__ import annotations

import asyncio
import base64
import logging
import os
import secrets

from cloison.daemon import launch
from cloison.daemon.parts import Parts
from cloison.daemon.volumes import Volumes
from cloison.errors import CloisonError, MachineError
from cloison.model.domains import Qube
from cloison.plan import fitting
from cloison.runtime.tasks import Tasks
from cloison.wire.warden import DiskSource, Kernel, Launch, Layer

log = logging.getLogger(__name__)


class Launches:
    def __init__(self, parts: Parts, volumes: Volumes) -> None:
        self._parts, self._volumes, self._wardens = parts, volumes, parts.wardens
        self._preparing = Tasks()

    def close(self) -> None:
        """Warm images in the making are given up."""
        self._preparing.cancel()

    async def build(self, qube: Qube, disks: tuple[DiskSource, ...], warm: str | None = None) -> Launch:
        kernel = self._parts.kernels.kernel(str(qube.get("kernel")))
        facts = launch.Facts(
            (*disks, _modules_disk(kernel)), kernel, await asyncio.to_thread(self._parts.accelerator),
            base64.b64encode(secrets.token_bytes(64)).decode("ascii"), self._parts.timezone, self._parts.host.now(), warm,
        )
        return launch.build(qube, facts)

    def prepare(self, template: Qube) -> None:
        """In the background, make the warm image that qubes of this template will start from."""
        self._preparing.begin(self._prepare(template))

    async def _prepare(self, template: Qube) -> None:
        """A failure is no one's yet: the first start tries again, and says so."""
        try:
            fitting.check_fits(template)
            disks = await self._volumes.as_of_a_child(template)
            launched = await self.build(template, disks)
            await self._wardens.ensure_warm(launched, lambda text: log.info("%s: %s", template.name, text), ahead=True)
        except CloisonError as error:
            log.warning("no warm image for %s yet: %s", template.name, error)


def _modules_disk(kernel: Kernel) -> DiskSource:
    """The kernel's modules, as a read-only disk. Raises MachineError."""
    try:
        size = os.stat(kernel.modules).st_size
    except OSError as error:
        raise MachineError(f"the modules of kernel {kernel.version} can't be read: {error.strerror}") from error
    return DiskSource("modules", size, (Layer(kernel.modules, "raw"),), writable=False)
