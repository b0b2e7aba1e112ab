"""What the model must know of the machine it runs on. Facts come in here; the model never looks for itself."""
from __future__ import annotations

import abc

from cloison.model.exposed import Exposed


class Host(abc.ABC):
    """Memory, processors, installed kernels, clock and chance."""

    memory: int             # MiB
    cpus: int
    dom0_memory: int = 4096     # MiB

    @abc.abstractmethod
    def kernels(self) -> list[str]:
        """Versions in the kernel pool."""

    @abc.abstractmethod
    def kernel_options(self, version: str, *, pci: bool) -> str | None:
        """The kernel command line its package advises, or None."""

    @abc.abstractmethod
    def free_memory(self) -> int:
        """MiB that can be given to qubes now."""

    @abc.abstractmethod
    def cpu_time(self) -> int:
        """Nanoseconds that all its processors have worked, for whomever."""

    @abc.abstractmethod
    def pci_devices(self) -> list[Exposed]:
        """In order of port."""

    @abc.abstractmethod
    def new_uuid(self) -> str: ...

    @abc.abstractmethod
    def new_dispid(self) -> int:
        """Random, 0 to 9999."""

    @abc.abstractmethod
    def now(self) -> float:
        """Seconds since the epoch."""
