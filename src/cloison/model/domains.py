"""The system and its qubes: who exists, who refers to whom, and what always holds.

Invariants: names, uuids and qids are unique; a reference by name never dangles; no network loop. Every change goes through
the journal.
"""
from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from cloison.errors import (
    BadValue,
    FeatureNotFound,
    QubeExists,
    QubeNotFound,
    TagNotFound,
)
from cloison.model import features
from cloison.model.catalogue import Catalogue
from cloison.model.devices import Assignment
from cloison.model.host import Host
from cloison.model.journal import Row
from cloison.model.properties import Holder, Property, Value
from cloison.model.volumes import Volume
from cloison.values import PowerState

DOM0 = "dom0"
DOM0_UUID = "00000000-0000-0000-0000-000000000000"
MAX_QID = 9999
READY, CREATING, IMPORTING, REMOVING = "ready", "creating", "importing", "removing"


@dataclass(frozen=True)
class Kind:
    """A class of qube. `templates`: classes its template may have; empty: it has none."""

    name: str
    properties: Mapping[str, Property]
    templates: tuple[str, ...] = ()
    machine: bool = True            # runs as a virtual machine of ours


class Qube(Holder):
    """One qube of any kind. `power`, `problem`, `note`, `xid`, `start_time` are what is known of its machine, not stored."""

    table = "properties"

    def __init__(self, system: System, kind: Kind, name: str, uuid: str, qid: int) -> None:
        super().__init__(kind.properties, system.journal, subject=name, owner=qid)
        self.system, self.kind, self.name, self.uuid, self.qid = system, kind, name, uuid, qid
        self.state = READY
        self.features: dict[str, str] = {}
        self.tags: dict[str, None] = {}
        self.volumes: dict[str, Volume] = {}
        self.assignments: dict[str, Assignment] = {}
        self.texts: dict[str, str] = {}             # firewall, notes
        self.power = PowerState.HALTED if kind.machine else PowerState.RUNNING
        self.note = ""                  # what it says itself is wrong in there, since its start
        self.problem = ""               # a sentence for the person when its machine is not as it should be, with what helps
        self.xid = -1
        self.start_time: float | None = None
        if kind.machine or name != DOM0:
            self.values.update(name=name, qid=qid, uuid=uuid)

    @property
    def klass(self) -> str:
        return self.kind.name

    @property
    def is_halted(self) -> bool:
        return self.power is PowerState.HALTED

    @property
    def is_unknown(self) -> bool:
        """Whether something of its machine may live, and nobody knows what it does. Unknown is not halted."""
        return self.power is PowerState.TRANSIENT and bool(self.problem)

    @property
    def is_running(self) -> bool:
        return self.power in (PowerState.RUNNING, PowerState.TRANSIENT, PowerState.HALTING)

    @property
    def is_preload(self) -> bool:
        """Whether it is a disposable that waits, started, to be used."""
        return "is_preload" in self.properties and bool(self.get("is_preload"))

    def reference(self, name: str) -> Qube | None:
        """The qube a property points at."""
        target = self.get_or_none(name)
        return None if target is None else self.system.qubes.get(target)

    @property
    def template(self) -> Qube | None:
        name = self.values.get("template")
        return self.system.qubes.get(str(name)) if name is not None else None

    @property
    def netvm(self) -> Qube | None:
        return self.reference("netvm")

    @property
    def dispid(self) -> int | None:
        """The number of a disposable; None for any other qube."""
        number = self.values.get("dispid")
        return number if isinstance(number, int) else None

    def templates(self) -> Iterator[Qube]:
        """The template, its template, ..."""
        qube = self.template
        while qube is not None:
            yield qube
            qube = qube.template

    def netvms(self) -> Iterator[Qube]:
        """The netvm, its netvm, ..."""
        seen = {self.name}
        qube = self.netvm
        while qube is not None and qube.name not in seen:
            seen.add(qube.name)
            yield qube
            qube = qube.netvm

    def root_template(self) -> Qube:
        """The qube whose root volume this one's root comes from."""
        *_, last = [self, *self.templates()]
        return last

    def resolve_qube(self, name: str) -> bool:
        return self.system.resolve_qube(name)

    def resolve_label(self, text: str) -> str | None:
        return self.system.resolve_label(text)

    def announce_inherited(self, prop: Property) -> None:
        """Its own children only: those of a template for disposables hear nothing, as the reference has it."""
        if prop.inherited and self.klass == "TemplateVM":
            for child in self.system.children(self):
                if child.is_default(prop.name):
                    child.announce(prop.name)

    # -- features -----------------------------------------------------------------------------------------------

    def feature(self, name: str) -> str:
        """Raises FeatureNotFound."""
        try:
            return self.features[name]
        except KeyError:
            raise FeatureNotFound(f"{self.name} has no feature {name[:60]!r}") from None

    def feature_or_none(self, name: str, *, template: bool = False, netvm: bool = False, adminvm: bool = False) -> str | None:
        """The feature here, else along the template chain, the netvm chain, or at dom0."""
        if name in self.features:
            return self.features[name]
        chains: list[Qube] = [*(self.templates() if template else ()), *(self.netvms() if netvm else ())]
        if adminvm:
            chains.append(self.system.dom0)
        return next((qube.features[name] for qube in chains if name in qube.features), None)

    def set_feature(self, name: str, value: str) -> None:
        """Raises BadValue where the core demands something of it."""
        if self.klass != "RemoteVM":
            features.check_meaning(name, value)
        if "template_for_dispvms" in self.properties or self.name == DOM0:
            features.check_preload(name, value, dom0=self.name == DOM0)
        if name == "preload-dispvm-max" and "template_for_dispvms" in self.properties:
            self._check_can_preload()
        pairs = {"feature": name, "value": value}
        if name == "service.meminfo-writer" and "maxmem" in self.properties:
            return self._set_balancing(bool(value), pairs)
        if name in self.features:
            pairs["oldvalue"] = self.features[name]
        self.journal.emit(self.name, f"domain-feature-pre-set:{name}", **pairs)
        self.journal.put("features", self.qid, self.features, name, value)
        if pairs.get("oldvalue") != value:
            self._feature_changed(name, pairs.get("oldvalue", ""))
        self.journal.emit(self.name, f"domain-feature-set:{name}", **pairs)
        return None

    def _set_balancing(self, balanced: bool, pairs: dict[str, str]) -> None:
        """The service meminfo-writer is nothing but property maxmem; as a feature it is gone when it has been said."""
        name = pairs["feature"]
        self.journal.emit(self.name, f"domain-feature-pre-set:{name}", **pairs)
        if balanced:
            self.reset("maxmem")
        else:
            self.set("maxmem", 0)
        for event in (f"domain-feature-pre-delete:{name}", f"domain-feature-delete:{name}"):
            self.journal.emit(self.name, event, feature=name)
        self.journal.emit(self.name, f"domain-feature-set:{name}", **pairs)

    def remove_feature(self, name: str) -> None:
        """Raises FeatureNotFound."""
        before = self.feature(name)
        self.journal.emit(self.name, f"domain-feature-pre-delete:{name}", feature=name)
        self.journal.drop("features", self.qid, self.features, name)
        self._feature_changed(name, before)
        self.journal.emit(self.name, f"domain-feature-delete:{name}", feature=name)

    def _check_can_preload(self) -> None:
        """Raises BadValue: a disposable is only put aside once it has said that it is up."""
        needed = ["qrexec", *(f"supported-rpc.{service}" for service in features.PRELOAD_SERVICES)]
        missing = [name for name in needed if not self.feature_or_none(name, template=True)]
        if missing:
            raise BadValue(f"{self.name} can't have preloaded disposables: its template lacks {', '.join(missing)}")

    def _feature_changed(self, name: str, before: str) -> None:
        """Announce the properties whose default depends on it."""
        prefix, _, rest = name.partition("-")
        if name == "boot-mode.active" and self.is_default("bootmode"):
            self.announce("bootmode")
        elif name == "boot-mode.appvm-default" and self.is_default("appvm_default_bootmode"):
            self.announce("appvm_default_bootmode")
            self.announce_bootmode_of_children()
        elif name == "preload-dispvm":
            changed = set(before.split()) ^ set(self.features.get(name, "").split())
            for child in self.system.children(self):
                if child.name in changed:
                    child.announce("is_preload")
        elif prefix == "net.fake":
            self.announce(f"visible_{rest}")

    def announce_bootmode_of_children(self) -> None:
        for child in self.system.children(self):
            if child.is_default("bootmode"):
                child.announce("bootmode")

    # -- tags ---------------------------------------------------------------------------------------------------

    def add_tag(self, tag: str) -> None:
        if tag not in self.tags:
            self.journal.put("tags", self.qid, self.tags, tag, None)
            if tag.startswith("created-by-"):
                self._follow_creator(tag.removeprefix("created-by-"))
            self.journal.emit(self.name, f"domain-tag-add:{tag}", tag=tag)

    def _follow_creator(self, name: str) -> None:
        """A management qube says by features which tags and which guivm its creations get; what it can't say is passed over."""
        creator = self.system.qubes.get(name)
        if creator is None:
            return
        for tag in creator.features.get("tag-created-vm-with", "").split():
            if features.TAG.fullmatch(tag) and not tag.startswith("created-by-"):
                self.add_tag(tag)
        guivm = creator.features.get("set-created-guivm", "")
        if "guivm" in self.properties and self.system.resolve_qube(guivm):
            self.set("guivm", guivm)

    def remove_tag(self, tag: str) -> None:
        """Raises TagNotFound."""
        if tag not in self.tags:
            raise TagNotFound(f"{self.name} has no tag {tag[:60]!r}")
        self.journal.drop("tags", self.qid, self.tags, tag)
        self.journal.emit(self.name, f"domain-tag-delete:{tag}", tag=tag)

    def keep_tag(self, prefix: str, name: str | None) -> None:
        """Make `<prefix><name>` the only tag of that prefix."""
        wanted = None if name is None else prefix + name
        for tag in [tag for tag in self.tags if tag.startswith(prefix) and tag != wanted]:
            self.remove_tag(tag)
        if wanted is not None:
            self.add_tag(wanted)

    # -- volumes, devices, texts ----------------------------------------------------------------------------------

    def put_volume(self, volume: Volume) -> None:
        self.journal.put("volumes", self.qid, self.volumes, volume.name, volume)

    def resize_volume(self, name: str, size: int) -> None:
        """Note a volume's new size in bytes; snapshots of it follow."""
        volume = replace(self.volumes[name], size=size)
        self.put_volume(volume)
        for other in self.system.qubes.values():
            for snapshot in [each for each in other.volumes.values() if each.source == volume.vid and each.pool == volume.pool]:
                other.put_volume(replace(snapshot, size=size))

    def put_assignment(self, assignment: Assignment) -> None:
        self.journal.put("assignments", self.qid, self.assignments, assignment.device.key, assignment)

    def drop_assignment(self, key: str) -> None:
        self.journal.drop("assignments", self.qid, self.assignments, key)

    def put_text(self, name: str, text: str) -> None:
        self.journal.put("texts", self.qid, self.texts, name, text)

    def pci_devices(self) -> list[Assignment]:
        return [assignment for assignment in self.assignments.values() if assignment.device.devclass == "pci"]

    def set_state(self, state: str) -> None:
        """creating or importing -> ready -> removing: a crash in between is mended when the daemon comes up."""
        self.journal.assign(self, "state", state, Row("qubes", self.qid, "state", state))


def _in_order(qubes: Iterable[Qube]) -> list[Qube]:
    """dom0 first, then by name: the order of listings, and of events."""
    return sorted(qubes, key=lambda qube: (qube.name != DOM0, qube.name))


class System(Catalogue):
    """The global object, and everything there is."""

    table = "globals"

    def __init__(self, properties: Mapping[str, Property], kinds: Mapping[str, Kind], host: Host) -> None:
        super().__init__(properties)
        self.kinds, self.host = kinds, host
        self.qubes: dict[str, Qube] = {}
        self.dom0 = Qube(self, kinds["AdminVM"], DOM0, DOM0_UUID, 0)
        self.qubes[DOM0] = self.dom0

    def resolve_qube(self, name: str) -> bool:
        return name in self.qubes and self.qubes[name].klass != "RemoteVM"

    def announce_inherited(self, prop: Property) -> None:
        """Global values are announced by the effects of their properties."""

    def qube(self, name: str) -> Qube:
        """Raises QubeNotFound."""
        try:
            return self.qubes[name]
        except KeyError:
            raise QubeNotFound(f"there is no qube {name[:60]!r}") from None

    def qube_by_uuid(self, uuid: str) -> Qube:
        """Raises QubeNotFound."""
        for qube in self.qubes.values():
            if qube.uuid == uuid:
                return qube
        raise QubeNotFound(f"there is no qube with uuid {uuid[:60]!r}")

    def sorted_qubes(self) -> list[Qube]:
        """All that there are, in order."""
        return _in_order(self.qubes.values())

    def children(self, template: Qube) -> list[Qube]:
        """The qubes made from this template."""
        return _in_order(qube for qube in self.qubes.values() if qube.values.get("template") == template.name)

    def clients(self, netvm: Qube) -> list[Qube]:
        """The qubes this one is the netvm of."""
        return _in_order(qube for qube in self.qubes.values() if qube is not netvm and qube.get_or_none("netvm") == netvm.name)

    def users(self, qube: Qube, prop: str) -> list[Qube]:
        """The other qubes whose property points here."""
        return _in_order(other for other in self.qubes.values() if other is not qube and other.get_or_none(prop) == qube.name)

    def with_default(self, prop: str) -> list[Qube]:
        """The qubes that have the property and use its default."""
        return _in_order(qube for qube in self.qubes.values() if prop in qube.properties and qube.is_default(prop))

    # -- who comes and goes ----------------------------------------------------------------------------------------

    def free_qid(self) -> int:
        """The smallest free number. Raises BadValue when all are taken."""
        taken = {qube.qid for qube in self.qubes.values()}
        for qid in range(1, MAX_QID + 1):
            if qid not in taken:
                return qid
        raise BadValue(f"there can be no more than {MAX_QID} qubes")

    def add(self, kind: Kind, name: str, values: Mapping[str, Value], *, uuid: str, state: str) -> Qube:
        """A new qube with these explicit values. Raises QubeExists, BadValue."""
        if name in self.qubes:
            raise QubeExists(f"there is a qube {name} already")
        qube = Qube(self, kind, name, uuid, self.free_qid())
        qube.state = state
        self.journal.put("qubes", qube.qid, self.qubes, name, qube)
        for prop, value in values.items():
            qube.store_value(prop, value)
        return qube

    def remove(self, qube: Qube) -> None:
        """Forget the qube; the store forgets all that belongs to it with its row."""
        self.journal.drop("qubes", qube.qid, self.qubes, qube.name)
