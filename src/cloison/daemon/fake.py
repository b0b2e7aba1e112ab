"""A whole system without machines, for tests: the real app, store and dispatch on a fake host, kernels, pools and wardens."""
from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from typing import NamedTuple

from cloison.admin.dispatch import route
from cloison.admin.methods import SOCKETS
from cloison.admin.qubesd import Call, Driver
from cloison.daemon.app import App
from cloison.daemon.fake_wardens import FakeWardens
from cloison.daemon.parts import Parts
from cloison.daemon.recovery import bring_up
from cloison.daemon.store import Store
from cloison.daemon.wiring import DRIVERS
from cloison.errors import CloisonError
from cloison.model.exposed import Exposed
from cloison.model.host import Host
from cloison.runtime.paths import Paths
from cloison.storage.base import Pool
from cloison.storage.fake import FakePool
from cloison.wire.admin import Request
from cloison.wire.warden import Kernel

KERNEL = "6.6.1"


class FakeHost(Host):
    """Counts where a real host draws lots; its clock is set by hand."""

    memory, cpus = 32768, 8

    def __init__(self) -> None:
        self.time = 1_700_000_000.0
        self.worked = 100 * 10**9
        self._uuids, self._dispids = itertools.count(1), itertools.cycle(range(1000, 10000))

    def kernels(self) -> list[str]:
        return [KERNEL]

    def kernel_options(self, version: str, *, pci: bool) -> str | None:
        return None

    def cpu_time(self) -> int:
        return self.worked

    def pci_devices(self) -> list[Exposed]:
        return []

    def free_memory(self) -> int:
        return self.memory

    def new_uuid(self) -> str:
        return f"00000000-0000-4000-8000-{next(self._uuids):012x}"

    def new_dispid(self) -> int:
        return next(self._dispids)

    def now(self) -> float:
        return self.time


class FakeKernels:
    def __init__(self, folder: str) -> None:
        self._folder = folder

    def versions(self) -> list[str]:
        return [KERNEL]

    def kernel(self, version: str) -> Kernel:
        folder = os.path.join(self._folder, version)
        return Kernel(version, *(os.path.join(folder, name) for name in ("vmlinuz", "initramfs", "modules.img")))


def _open_fake(name: str, config: Mapping[str, str]) -> Pool:
    return FakePool(name, config["dir_path"])


def fake_drivers() -> dict[str, Driver]:
    return {**DRIVERS, "qcow2": Driver(DRIVERS["qcow2"].options, DRIVERS["qcow2"].required, _open_fake)}


def fake_parts(root: str, *, drivers: Mapping[str, Driver] | None = None, wardens: FakeWardens | None = None,
               host: Host | None = None) -> Parts:
    """Parts below a folder of its own."""
    paths = Paths.from_environment({"CLOISON_ROOT": root})
    paths.ensure()
    modules = os.path.join(paths.kernels, KERNEL)
    os.makedirs(modules, exist_ok=True)
    with open(os.path.join(modules, "modules.img"), "wb") as file:
        file.write(bytes(512))
    return Parts(paths, host or FakeHost(), Store(paths.store), wardens or FakeWardens(), drivers or fake_drivers(),
                 FakeKernels(paths.kernels))


async def fake_app(root: str) -> App:
    """An app that is up, on `fake_parts`."""
    app = App(fake_parts(root))
    await bring_up(app)
    return app


class Answer(NamedTuple):
    """`failure` is the exception class on the wire, or empty."""

    content: str
    failure: str
    events: list[tuple[str, str, dict[str, str]]]


async def close_app(app: App) -> None:
    """End what it has under way, and its parts."""
    await app.live.close()
    await app.preloads.close()
    await app.machines.close()
    await app.parts.wardens.close()
    app.parts.store.close()


async def ask(app: App, method: str, dest: str = "dom0", argument: str = "", payload: str | bytes = b"", *,
              source: str = "dom0", socket: str = "qubesd.sock") -> Answer:
    """One call, from the header's checks to the reply, without a socket."""
    events: list[tuple[str, str, dict[str, str]]] = []
    data = payload.encode() if isinstance(payload, str) else payload
    try:
        found, from_, to = route(app.system, SOCKETS[socket], Request(method, argument, source, "name", dest, data))
        call = Call(app, from_, to, argument, data, lambda *event: events.append((event[0], event[1], dict(event[2]))))
        reply = found.handler(call)
        content = reply if isinstance(reply, str | None) else await reply
    except CloisonError as error:
        return Answer(str(error), error.wire, events)
    return Answer(content or "", "", events)
