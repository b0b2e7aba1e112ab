"""The table of calls: where each may go, what it takes, and who serves it (reference/admin-api.md 5).

`rule` is three characters: destination (`0` dom0 only, `V` not dom0, `*` any), argument and payload (`-` forbidden, `R`
required, `o` optional). `scope`: `g`lobal or `l`ocal, then `r`ead, `w`rite or e`x`ecute: default policy sorts calls by it.
"""
from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from cloison.admin.calls import (
    create,
    devices,
    features,
    firewall,
    internal,
    labels,
    listing,
    pools,
    power,
    properties,
    requests,
    store,
    volumes,
)
from cloison.admin.qubesd import Call
from cloison.model.devices import ADDED, CLASSES
from cloison.model.qubes import KINDS

Reply = str | None
Handler = Callable[[Call], Reply | Awaitable[Reply]]


@dataclass(frozen=True)
class Method:
    name: str
    rule: str
    scope: str
    handler: Handler
    stream: bool = False        # answers with events, and wants to know when the caller hangs up
    for_caller: bool = False    # given up when the caller hangs up before it is done


def _table(*methods: Method) -> dict[str, Method]:
    return {method.name: method for method in methods}


def _property_calls(prefix: str, family: properties.Family, dest: str, scope: str) -> list[Method]:
    M = Method
    return [
        M(f"{prefix}.List", f"{dest}--", f"{scope}r", family.list),
        M(f"{prefix}.Get", f"{dest}R-", f"{scope}r", family.get),
        M(f"{prefix}.GetAll", f"{dest}--", f"{scope}r", family.get_all),
        M(f"{prefix}.GetDefault", f"{dest}R-", f"{scope}r", family.get_default),
        M(f"{prefix}.Help", f"{dest}R-", f"{scope}r", family.help),
        M(f"{prefix}.Set", f"{dest}Ro", f"{scope}w", family.set),
        M(f"{prefix}.Reset", f"{dest}R-", f"{scope}w", family.reset),
    ]


def _creation(klass: str) -> list[Method]:
    return [
        Method(f"admin.vm.Create.{klass}", "0oo", "gw", create.create(klass, in_pool=False)),
        Method(f"admin.vm.CreateInPool.{klass}", "0oo", "gw", create.create(klass, in_pool=True)),
    ]


def _device_calls(devclass: str) -> list[Method]:
    prefix, M = f"admin.vm.device.{devclass}", Method
    return [
        M(f"{prefix}.Available", "*o-", "lr", devices.available(devclass)),
        M(f"{prefix}.Assigned", "*o-", "lr", devices.assigned(devclass)),
        M(f"{prefix}.Attached", "*o-", "lr", devices.attached(devclass)),
        M(f"{prefix}.Assign", "*RR", "lw", devices.assign(devclass)),
        M(f"{prefix}.Unassign", "*R-", "lw", devices.unassign(devclass)),
        M(f"{prefix}.Set.assignment", "*RR", "lw", devices.set_assignment(devclass)),
        M(f"{prefix}.Attach", "*Ro", "lx", devices.attach(devclass)),
        M(f"{prefix}.Detach", "*R-", "lx", devices.detach(devclass)),
    ]


ADMIN = _table(
    Method("admin.vmclass.List", "0--", "gr", listing.vm_classes),
    Method("admin.deviceclass.List", "0--", "gr", listing.device_classes),
    Method("admin.vm.List", "*--", "gr", listing.vm_list),
    Method("admin.vm.CurrentState", "*--", "lr", listing.current_state),
    Method("admin.Events", "*--", "gr", listing.events, stream=True),
    Method("admin.vm.Stats", "*--", "gr", listing.stats, stream=True),
    *_property_calls("admin.vm.property", properties.of_qube, "*", "l"),
    *_property_calls("admin.property", properties.of_system, "0", "g"),
    Method("admin.label.List", "0--", "gr", labels.listing),
    Method("admin.label.Get", "0R-", "gr", labels.get),
    Method("admin.label.Index", "0R-", "gr", labels.index),
    Method("admin.label.Create", "0RR", "gw", labels.create),
    Method("admin.label.Remove", "0R-", "gw", labels.remove),
    *(method for klass in KINDS for method in _creation(klass)),
    Method("admin.vm.CreateDisposable", "*oo", "gw", create.create_disposable),
    Method("admin.vm.Remove", "*--", "gw", create.remove),
    Method("admin.vm.Start", "*--", "lx", power.start, for_caller=True),
    Method("admin.vm.Shutdown", "*o-", "lx", power.shutdown),
    Method("admin.vm.Kill", "*--", "lx", power.kill),
    Method("admin.vm.Pause", "*--", "lx", power.pause),
    Method("admin.vm.Unpause", "*--", "lx", power.unpause),
    Method("admin.vm.Suspend", "*--", "lx", power.suspend),
    Method("admin.vm.Resume", "*--", "lx", power.resume),
    Method("admin.vm.Console", "*--", "lw", power.console),
    Method("admin.vm.feature.List", "*--", "lr", features.listing),
    Method("admin.vm.feature.Get", "*R-", "lr", features.get),
    Method("admin.vm.feature.CheckWithTemplate", "*R-", "lr", features.check(template=True)),
    Method("admin.vm.feature.CheckWithNetvm", "*R-", "lr", features.check(netvm=True)),
    Method("admin.vm.feature.CheckWithAdminVM", "*R-", "lr", features.check(adminvm=True)),
    Method("admin.vm.feature.CheckWithTemplateAndAdminVM", "*R-", "lr", features.check(template=True, adminvm=True)),
    Method("admin.vm.feature.Set", "*Ro", "lw", features.set_),
    Method("admin.vm.feature.Remove", "*R-", "lw", features.remove),
    Method("admin.vm.tag.List", "*--", "lr", features.tag_list),
    Method("admin.vm.tag.Get", "*R-", "lr", features.tag_get),
    Method("admin.vm.tag.Set", "*R-", "lw", features.tag_set),
    Method("admin.vm.tag.Remove", "*R-", "lw", features.tag_remove),
    Method("admin.vm.notes.Get", "V--", "lr", features.notes_get),
    Method("admin.vm.notes.Set", "V-o", "lw", features.notes_set),
    Method("admin.vm.volume.List", "*--", "lr", volumes.listing),
    Method("admin.vm.volume.Info", "*R-", "lr", volumes.info),
    Method("admin.vm.volume.ListSnapshots", "*R-", "lr", volumes.snapshots),
    Method("admin.vm.volume.Revert", "*RR", "lw", volumes.revert),
    Method("admin.vm.volume.CloneFrom", "*R-", "lw", volumes.clone_from),
    Method("admin.vm.volume.CloneTo", "*RR", "lw", volumes.clone_to),
    Method("admin.vm.volume.Resize", "*RR", "lw", volumes.resize),
    Method("admin.vm.volume.Clear", "*R-", "lw", volumes.clear),
    Method("admin.vm.volume.Set.revisions_to_keep", "*RR", "lw", volumes.set_revisions),
    Method("admin.vm.volume.Set.rw", "*RR", "lw", volumes.set_rw),
    Method("admin.vm.volume.Set.ephemeral", "*RR", "lw", volumes.set_ephemeral),
    Method("admin.pool.List", "0--", "gr", pools.listing),
    Method("admin.pool.ListDrivers", "0--", "gr", pools.drivers),
    Method("admin.pool.Info", "0R-", "gr", pools.info),
    Method("admin.pool.UsageDetails", "0R-", "gr", pools.usage_details),
    Method("admin.pool.Add", "0RR", "gw", pools.add),
    Method("admin.pool.Remove", "0R-", "gw", pools.remove),
    Method("admin.pool.volume.List", "0R-", "gr", pools.volumes),
    Method("admin.pool.Set.revisions_to_keep", "0RR", "gw", pools.set_revisions),
    Method("admin.pool.Set.ephemeral_volatile", "0RR", "gw", pools.set_ephemeral),
    *(method for devclass in (*CLASSES, *ADDED) for method in _device_calls(devclass)),
    Method("admin.vm.device.denied.List", "*--", "lr", devices.denied_list),
    Method("admin.vm.device.denied.Add", "*-o", "lw", devices.denied_add),
    Method("admin.vm.device.denied.Remove", "*-o", "lw", devices.denied_remove),
    Method("admin.vm.firewall.Get", "V--", "lr", firewall.get),
    Method("admin.vm.firewall.Set", "V-o", "lw", firewall.set_),
    Method("admin.vm.firewall.Reload", "V--", "lx", firewall.reload),
    Method("admin.backup.Info", "0R-", "lr", internal.backup),
    Method("admin.backup.Execute", "0R-", "gx", internal.backup),
    Method("admin.backup.Cancel", "0R-", "gx", internal.cancel_backup),
    Method("cloison.Disposable", "*-o", "gx", internal.disposable, stream=True),
)

INTERNAL = _table(
    Method("internal.GetSystemInfo", "0--", "gr", listing.system_info),
    Method("internal.vm.volume.ImportBegin", "*Ro", "lw", volumes.import_begin),
    Method("internal.vm.volume.ImportEnd", "*RR", "lw", volumes.import_end),
    Method("internal.SuspendPre", "0--", "gx", internal.suspend_pre),
    Method("internal.SuspendPost", "0--", "gx", internal.suspend_post),
    Method("internal.cloison.SealRoot", "V-R", "lw", internal.seal_root),
    Method("internal.cloison.FeaturesRequest", "V-R", "lw", requests.template_features),
    Method("internal.cloison.ImportQubesXml", "0-R", "gw", store.import_qubes_xml),
    Method("internal.cloison.ExportQubesXml", "0--", "gr", store.export_qubes_xml),
    Method("internal.cloison.ExportFirewall", "V--", "lr", firewall.export),
    Method("internal.cloison.Status", "0--", "gr", internal.status),
)

MISC = _table(
    Method("qubes.FeaturesRequest", "0--", "gw", requests.features_request),
    Method("qubes.NotifyTools", "0--", "gw", requests.notify_tools),
    Method("qubes.NotifyUpdates", "0-R", "gw", requests.notify_updates),
)

SOCKETS = {"qubesd.sock": ADMIN, "qubesd.internal.sock": INTERNAL, "qubesd.misc.sock": MISC}
