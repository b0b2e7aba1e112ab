"""What may not go because something else needs it: qubes and pools."""
from __future__ import annotations

from cloison.errors import PoolInUse, QubeInUse
from cloison.model.domains import Qube, System
from cloison.model.properties import Holder


def referrers(system: System, qube: Qube) -> list[tuple[Holder, str]]:
    """Who points here: qubes by an explicitly set property, the system by any."""
    found: list[tuple[Holder, str]] = []
    for holder in (other for other in system.qubes.values() if other is not qube and not other.is_preload):
        found += [(holder, name) for name, value in holder.values.items()
                  if value == qube.name and holder.properties[name].type == "vm"]
    found += [(system, name) for name, prop in system.properties.items()
              if prop.type == "vm" and system.get_or_none(name) == qube.name]
    return found


def check_removable(system: System, qube: Qube) -> None:
    """Raises QubeInUse."""
    if qube is system.dom0:
        raise QubeInUse("dom0 can't be removed")
    if qube.get_or_none("installed_by_rpm"):
        raise QubeInUse(f"{qube.name} was installed by the package manager; remove its package")
    for holder, prop in referrers(system, qube):
        raise QubeInUse(f"{qube.name} is needed: it is the {prop} of {holder.subject or 'the system'}")
    for other in system.qubes.values():
        if other is not qube and any(rule.device.backend == qube.name for rule in other.assignments.values()):
            raise QubeInUse(f"{qube.name} is needed: {other.name} is assigned a device of it")


def check_pool_removable(system: System, name: str) -> None:
    """Raises PoolInUse."""
    for prop in system.properties:
        if prop.startswith("default_pool") and system.get_or_none(prop) == name:
            raise PoolInUse(f"pool {name} is the system's {prop}")
    for qube in system.qubes.values():
        if any(volume.pool == name for volume in qube.volumes.values()):
            raise PoolInUse(f"pool {name} holds volumes of {qube.name}")
