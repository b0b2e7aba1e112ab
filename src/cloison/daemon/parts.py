"""What the daemon is wired from; `main` puts it together, tests put in fakes."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

from cloison.admin.qubesd import Driver
from cloison.daemon.store import Store
from cloison.daemon.wardens import Wardens
from cloison.model.host import Host
from cloison.runtime.paths import Paths
from cloison.wire.warden import Kernel


class Kernels(Protocol):
    """The pool `linux-kernel`."""

    def versions(self) -> list[str]: ...

    def kernel(self, version: str) -> Kernel: ...


@dataclass(frozen=True)
class Parts:
    """What the daemon is wired from."""

    paths: Paths
    host: Host
    store: Store
    wardens: Wardens
    drivers: Mapping[str, Driver]
    kernels: Kernels
    accelerator: Callable[[], str] = lambda: "tcg"   # kvm or tcg, for the next machine; may take seconds the first time
    timezone: str = ""
