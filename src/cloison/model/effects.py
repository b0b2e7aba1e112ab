"""What else changes, or must be announced, when a property changes (reference/admin-api.md 10.3, 12)."""
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from cloison.model import deferred
from cloison.model.domains import Qube, System
from cloison.model.properties import Value
from cloison.model.volumes import Volume, folder, snapshot


def label(qube: Qube, _new: Value, _old: Value) -> None:
    if qube.klass != "RemoteVM":
        qube.announce("icon")


def provides_network(qube: Qube, new: Value, old: Value) -> None:
    """The feature tells the icon."""
    if new:
        qube.set_feature("servicevm", "1")
        qube.announce("icon")
    elif "servicevm" in qube.features:
        qube.remove_feature("servicevm")
        qube.announce("icon")
    if new != old:
        qube.announce("gateway")
        qube.announce("gateway6")


def keeps_tag(prefix: str) -> Callable[[Qube, Value, Value], None]:
    """The tag `<prefix><name>` follows a reference."""

    def effect(qube: Qube, new: Value, _old: Value) -> None:
        qube.keep_tag(prefix, None if new is None else str(new))

    return effect


def keyboard_layout(qube: Qube, new: Value, old: Value) -> None:
    if new == old:
        return
    for user in qube.system.users(qube, "guivm"):
        if user.is_default("keyboard_layout"):
            user.announce("keyboard_layout", oldvalue=old)


def netvm(qube: Qube, new: Value, old: Value) -> None:
    """QubesDB is filled anew, and the new provider hears of its client. A paused qube keeps its connection until it runs on."""
    deferred.note(qube, old)
    if new != old and not qube.is_halted and isinstance(new, str):
        qube.journal.emit(qube.name, "domain-qdb-create")
        qube.journal.emit(new, "net-domain-connect", vm=qube.name)


def address(suffix: str) -> Callable[[Qube, Value, Value], None]:
    """For ip ("") and ip6 ("6"): what the qube and its clients see of the network follows."""

    def effect(qube: Qube, _new: Value, _old: Value) -> None:
        if qube.get("provides_network"):
            qube.announce(f"gateway{suffix}")
        qube.announce(f"visible_ip{suffix}")
        for client in qube.system.clients(qube):
            client.announce(f"visible_gateway{suffix}")

    return effect


def own_default_dispvm(qube: Qube, _new: Value, _old: Value) -> None:
    qube.announce("icon")


def template(qube: Qube, _new: Value, _old: Value) -> None:
    """Snapshot volumes follow the new template; so do those of the qube's disposables."""
    reinit_snapshots(qube)
    for child in qube.system.children(qube):
        reinit_snapshots(child)


def reinit_snapshots(qube: Qube) -> None:
    source = qube.template
    if source is None:
        return
    base = folder(qube.klass, qube.name)
    for name, volume in list(qube.volumes.items()):
        origin: Volume | None = source.volumes.get(name)
        if volume.snap_on_start and origin is not None:
            qube.put_volume(replace(snapshot(name, base, origin), ephemeral=volume.ephemeral,
                                    revisions_to_keep=volume.revisions_to_keep))


def appvm_default_bootmode(template: Qube, new: Value, old: Value) -> None:
    if new != old:
        template.announce_bootmode_of_children()


def dispvm_template(qube: Qube, new: Value, old: Value) -> None:
    template(qube, new, old)
    if new != old and qube.is_default("default_dispvm"):
        qube.announce("default_dispvm")


# -- global properties ---------------------------------------------------------------------------------------------------


def default_netvm(system: System, new: Value, old: Value) -> None:
    """Announced as a set, and as a reset, on each qube that uses the default."""
    qubes = system.with_default("netvm")
    for qube in qubes:
        system.journal.emit(qube.name, "property-pre-set:netvm", name="netvm", newvalue=new, oldvalue=old)
    for qube in qubes:
        effective = qube.get("netvm")               # a template has none by default
        if effective != old:
            netvm(qube, effective, old)
            system.journal.emit(qube.name, "property-set:netvm", name="netvm", newvalue=effective, oldvalue=old)
        system.journal.emit(qube.name, "property-reset:netvm", name="netvm", oldvalue=old)


def default_dispvm(system: System, _new: Value, old: Value) -> None:
    for qube in system.with_default("default_dispvm"):
        system.journal.emit(qube.name, "property-reset:default_dispvm", name="default_dispvm", oldvalue=old)


def default_user_interface(prop: str) -> Callable[[System, Value, Value], None]:
    """For default_guivm and default_audiovm."""

    def effect(system: System, new: Value, old: Value) -> None:
        for qube in system.with_default(prop):
            qube.keep_tag(f"{prop}-", None if new is None else str(new))
            system.journal.emit(qube.name, f"property-set:{prop}", name=prop, newvalue=new, oldvalue=old)

    return effect


def clockvm(system: System, new: Value, old: Value) -> None:
    if isinstance(new, str) and "service.clocksync" not in system.qubes[new].features:
        system.qubes[new].set_feature("service.clocksync", "1")
    if isinstance(old, str) and old != new and system.qubes[old].features.get("service.clocksync"):
        system.qubes[old].remove_feature("service.clocksync")
