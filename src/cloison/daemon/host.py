"""The facts of the real host that the model asks for."""
from __future__ import annotations

import os
import secrets
import time
import uuid
from collections.abc import Callable

from cloison.daemon import pci
from cloison.model.exposed import Exposed
from cloison.model.host import Host


def _memory() -> int:
    """MiB of physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def timezone() -> str:
    """As `Europe/Paris`; empty if the host does not say."""
    try:
        target = os.readlink("/etc/localtime")
    except OSError:
        return ""
    return target.partition("/zoneinfo/")[2]


class RealHost(Host):
    def __init__(self, kernels: str, versions: Callable[[], list[str]]) -> None:
        self._folder, self._versions = kernels, versions
        self.memory = self.dom0_memory = _memory()
        self.cpus = os.cpu_count() or 1

    def kernels(self) -> list[str]:
        return self._versions()

    def kernel_options(self, version: str, *, pci: bool) -> str | None:
        name = f"default-kernelopts-{'pci' if pci else 'nopci'}.txt"
        try:
            with open(os.path.join(self._folder, version, name), encoding="ascii") as file:
                return file.read(512).strip()
        except (OSError, UnicodeDecodeError):
            return None

    def free_memory(self) -> int:
        """What the kernel thinks can be had without swapping."""
        with open("/proc/meminfo", encoding="ascii") as file:
            words = next(line for line in file if line.startswith("MemAvailable:")).split()
        return int(words[1]) >> 10

    def cpu_time(self) -> int:
        """All but idle, waiting for disks, and taken by another machine."""
        with open("/proc/stat", encoding="ascii") as file:
            user, nice, system, _idle, _waiting, irq, softirq = map(int, file.readline().split()[1:8])
        return (user + nice + system + irq + softirq) * 10**9 // os.sysconf("SC_CLK_TCK")

    def pci_devices(self) -> list[Exposed]:
        return pci.devices()

    def new_uuid(self) -> str:
        return str(uuid.uuid4())

    def new_dispid(self) -> int:
        return secrets.randbelow(10000)

    def now(self) -> float:
        return time.time()
