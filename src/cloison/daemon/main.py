"""Wires qubesd from its real parts and runs it."""
from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence

from cloison.daemon.host import RealHost, timezone
from cloison.daemon.locks import take_locks
from cloison.daemon.parts import Parts
from cloison.daemon.policy_keeper import PolicyKeeper
from cloison.daemon.reserve import Reserves
from cloison.daemon.run import serve
from cloison.daemon.store import Store
from cloison.daemon.wardens import Wardens
from cloison.daemon.wiring import DRIVERS
from cloison.errors import CloisonError
from cloison.hypervisor import probe
from cloison.runtime import keyring
from cloison.runtime.daemon import begin
from cloison.runtime.paths import Paths
from cloison.storage.linux_kernel import KernelPool


def _wardens(paths: Paths) -> Wardens:
    """The one place that says what runs the machines."""
    from cloison.daemon.zygote_wardens import ZygoteWardens

    return ZygoteWardens(paths)


def _accelerator(paths: Paths, kernels: KernelPool, wanted: str | None) -> Callable[[], str]:
    """KVM if it really runs guests, asked again only when there is another kernel to try it with."""
    found: dict[tuple[str, ...], str] = {}

    def choose() -> str:
        versions = tuple(kernels.versions())
        if versions not in found:
            found[versions] = wanted or probe.accelerator(paths)
        return found[versions]

    return choose


def _parts(paths: Paths, accelerator: str | None) -> Parts:
    kernels = KernelPool(paths.kernels)
    return Parts(paths, RealHost(paths.kernels, kernels.versions), Store(paths.store), _wardens(paths), DRIVERS,
                 kernels, _accelerator(paths, kernels, accelerator), timezone())


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="qubesd", description="Keeps the qubes and serves the Admin API.")
    parser.add_argument("--bare", action="store_true", help="start no qube by itself")
    parser.add_argument("--accelerator", choices=("tcg", "kvm"), help="instead of KVM where it works")
    options = parser.parse_args(arguments)
    try:
        keyring.leave()
        paths = begin()
        Reserves(paths.data).spend(paths.data)          # on a full disk: to come up, and to be told what shall go
        locks = take_locks(paths)
        asyncio.run(serve(_parts(paths, options.accelerator), locks, autostart=not options.bare,
                          beside=lambda: PolicyKeeper(paths).run()))
    except CloisonError as error:
        print(f"qubesd: {error}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_status
    except OSError as error:
        print(f"qubesd: {error.filename or 'the host'}: {error.strerror}", file=sys.stderr)
        return 1
    return 0
