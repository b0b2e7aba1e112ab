"""A netvm that is changed while its qube is paused: the change waits for the qube to run on (reference/admin-api.md 15).

The feature says since when it waits: it holds the netvm that the qube is still connected to, or nothing for none.
"""
from __future__ import annotations

from cloison.model.domains import Qube
from cloison.model.properties import Value
from cloison.values import PowerState

FEATURE = "deferred-netvm-original"


def note(qube: Qube, old: Value) -> None:
    """The netvm is about to be another one. The first of several changes counts."""
    if qube.power is PowerState.PAUSED and FEATURE not in qube.features:
        qube.set_feature(FEATURE, old if isinstance(old, str) else "")


def apply(qube: Qube) -> None:
    """Announce the change now, if one waits and can be made: a netvm that is off is waited for, and so is whoever gets a
    preloaded disposable.
    """
    if FEATURE not in qube.features or qube.is_preload or qube.power is not PowerState.RUNNING:
        return
    netvm, old = qube.netvm, qube.features[FEATURE]
    if netvm is not None and not netvm.is_running:
        return
    change = {"name": "netvm", "newvalue": netvm and netvm.name, "oldvalue": old if old in qube.system.qubes else None}
    qube.journal.emit(qube.name, "property-pre-set:netvm", **change)
    if netvm is not None:
        qube.journal.emit(qube.name, "domain-qdb-create")
        qube.journal.emit(netvm.name, "net-domain-connect", vm=qube.name)
        qube.journal.emit(qube.name, "property-set:netvm", **change)
    qube.remove_feature(FEATURE)


def forget(qube: Qube) -> None:
    """The qube has ended: its next start finds everything as it is now."""
    if FEATURE in qube.features:
        qube.remove_feature(FEATURE)
