"""Decides what starting, stopping and removing qubes takes, and when it is refused (reference/admin-api.md 14)."""
from __future__ import annotations

import enum
from dataclasses import dataclass

from cloison.errors import (
    CloisonError,
    QubeError,
    QubeInUse,
    QubeNotHalted,
    QubeNotPaused,
    QubeNotRunning,
    QubeNotStarted,
)
from cloison.model import removal
from cloison.model.domains import READY, REMOVING, Qube, System
from cloison.model.features import PROHIBIT_START
from cloison.plan import fitting
from cloison.values import PowerState

WARM, COLD = "warm", "cold"


class Do(enum.Enum):
    START_NETVM = "start the netvm"
    START_VOLUMES = "make the disks ready"
    MAKE_WARM = "have a warm image"
    BOOT = "run the machine"


_NOT_UP = (PowerState.HALTED, PowerState.TRANSIENT, PowerState.DYING)       # a netvm that its client must have started, or wait for


@dataclass(frozen=True)
class Step:
    """One thing to do to one qube, and why."""

    do: Do
    qube: str
    why: str


def check_machine(qube: Qube) -> None:
    """Raises QubeError for dom0 and remote qubes."""
    if not qube.kind.machine:
        raise QubeError(f"{qube.name} is of class {qube.klass}: it has no machine here to control")


def check_known(qube: Qube) -> None:
    """Raises QubeError while nobody knows whether the qube runs: it is neither used nor changed then."""
    if qube.is_unknown:
        raise QubeError(f"whether {qube.name} runs is not known: {qube.problem}")


def check_start(qube: Qube) -> None:
    """Raises what forbids a start; nothing forbids to have it that a running qube runs."""
    if not qube.kind.machine:
        raise QubeNotHalted(f"{qube.name} is of class {qube.klass}: it runs always")
    if qube.state != READY:
        raise QubeError(f"{qube.name} is being {'removed' if qube.state == REMOVING else 'made'}")
    check_known(qube)
    if not qube.is_halted:
        return
    rationale = qube.features.get(PROHIBIT_START)
    if rationale:
        raise CloisonError(f"{qube.name} may not be started: {rationale}")
    if "backup-restore-in-progress" in qube.tags:
        raise QubeError(f"{qube.name} is being restored from a backup")
    if not qube.get_or_none("kernel"):
        raise CloisonError(f"{qube.name} has no kernel to boot: set its kernel, or default_kernel")
    fitting.check_fits(qube)


def starts_warm(qube: Qube) -> bool:
    """A qube whose root is thrown away starts from the memory of its template; the others boot."""
    root = qube.volumes.get("root")
    return root is not None and root.snap_on_start


def plan_start(qube: Qube, why: str = "asked for") -> list[Step]:
    """What a start takes, in order; nothing if the qube is not halted. Raises what forbids it, here or in a netvm."""
    check_start(qube)
    if not qube.is_halted:
        return []
    steps = []
    netvm = qube.netvm
    if netvm is not None and netvm.power in _NOT_UP:
        plan_start(netvm)
        steps.append(Step(Do.START_NETVM, netvm.name, f"netvm of {qube.name}"))
    steps.append(Step(Do.START_VOLUMES, qube.name, why))
    if starts_warm(qube):
        steps.append(Step(Do.MAKE_WARM, qube.name, "its root is a snapshot"))
    steps.append(Step(Do.BOOT, qube.name, why))
    return steps


def check_shutdown(qube: Qube, *, force: bool) -> None:
    """Raises QubeNotStarted, QubeNotRunning, QubeInUse, QubeError."""
    check_machine(qube)
    if qube.is_halted:
        raise QubeNotStarted(f"{qube.name} is halted already")
    check_known(qube)
    if force or (qube.power is PowerState.PAUSED and qube.is_preload):
        return
    if qube.power is PowerState.PAUSED:
        raise QubeNotRunning(f"{qube.name} is paused; unpause it, or use force")
    for prop, error in (("netvm", QubeInUse), ("audiovm", QubeInUse), ("guivm", QubeError)):
        users = [user.name for user in qube.system.users(qube, prop)
                 if user.kind.machine and not user.is_halted and (prop == "guivm" or not user.is_preload)]
        if users:
            raise error(f"{qube.name} is the {prop} of {', '.join(sorted(users))}, which {'runs' if len(users) == 1 else 'run'}")


def check_kill(qube: Qube) -> None:
    """Raises QubeError, QubeNotStarted."""
    check_machine(qube)
    if qube.is_halted:
        raise QubeNotStarted(f"{qube.name} is halted already")


def check_pause(qube: Qube) -> None:
    """Raises QubeError, QubeNotRunning."""
    check_machine(qube)
    check_known(qube)
    if qube.power is not PowerState.RUNNING:
        raise QubeNotRunning(f"{qube.name} is {qube.power}, not running")


def check_unpause(qube: Qube) -> None:
    """Raises QubeError, QubeNotPaused."""
    check_machine(qube)
    check_known(qube)
    if qube.power is not PowerState.PAUSED:
        raise QubeNotPaused(f"{qube.name} is {qube.power}, not paused")


def check_suspend(qube: Qube) -> None:
    """Raises QubeError, QubeNotRunning."""
    check_machine(qube)
    check_known(qube)
    if qube.power not in (PowerState.RUNNING, PowerState.PAUSED):
        raise QubeNotRunning(f"{qube.name} is {qube.power}, not running")


def check_remove(qube: Qube) -> None:
    """Raises QubeInUse, QubeNotHalted."""
    if qube is qube.system.dom0 or qube.get_or_none("installed_by_rpm"):
        removal.check_removable(qube.system, qube)
    if qube.kind.machine and not qube.is_halted:
        check_known(qube)
        raise QubeNotHalted(f"{qube.name} is {qube.power}: shut it down before removing it")
    removal.check_removable(qube.system, qube)


def check_disposable(template: Qube) -> None:
    """Raises CloisonError."""
    if not template.get_or_none("template_for_dispvms"):
        raise CloisonError(f"{template.name} is not a template for disposables (its template_for_dispvms is not set)")


def child_netvm(source: Qube, template: Qube) -> tuple[bool, str | None]:
    """Whether the netvm of a disposable that `source` asked for must be set, and to what.

    A child never gets more network than its parent: an offline qube's disposable is offline, and one that would use the
    system's default uses its parent's netvm instead. dom0 chooses freely: it asks for the person.
    """
    if source is source.system.dom0:
        return False, None
    parent = source.get_or_none("netvm")
    if parent is None:
        return True, None
    return template.is_default("netvm"), parent


def autostart_order(system: System) -> list[str]:
    """The qubes to start with the system, each after its netvm."""
    ordered: list[str] = []
    for qube in system.sorted_qubes():
        if qube.get_or_none("autostart"):
            for name in (*reversed([netvm.name for netvm in qube.netvms()]), qube.name):
                if name not in ordered:
                    ordered.append(name)
    return ordered
