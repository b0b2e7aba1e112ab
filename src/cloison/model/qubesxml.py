"""qubes.xml: the store of Qubes OS 4.x as bytes, read into our model (reference/admin-api.md 17); `qubesxml_export` writes it.

For opening a system that Qubes OS wrote. Reading fills a system through its journal, so the caller stores all of it or undoes
all of it. Firewall rules and notes are kept elsewhere there, and are not in this file.
"""
from __future__ import annotations

import re
from collections.abc import Mapping
from xml.etree.ElementTree import Element

from cloison.devicetext import ANY, Device, serialise
from cloison.errors import CloisonError
from cloison.model import devices, features, labels, volumes
from cloison.model.catalogue import SYSTEM
from cloison.model.devices import Assignment
from cloison.model.domains import MAX_QID, Qube, System
from cloison.model.labels import Label
from cloison.model.properties import NO_DEFAULT, Holder, Property, Value
from cloison.model.qubesxml_elements import BadQubesXml, attribute, children, elements, named_texts, parse_flag, parse_number
from cloison.model.volumes import Pool, Volume
from cloison.values import InvalidValue, QubeName, Uuid, VolumeName

MAX_QUBES = 2000
MAX_SIZE = 1 << 60          # bytes of a volume
MAX_REVISIONS = 1_000_000
MAX_DISPID = 9999
_GONE_GREY, _GREY = "0x555753", "0x555555"
_IDENTITY = ("name", "qid", "uuid")
_SOFT_KERNELS = ("kernel", "default_kernel")
_SOFT_DISPVMS = ("default_dispvm", "management_dispvm")
# Asked of the other end, too: of the netvm by its clients, of the template by its disposables.
_SEEN_BY_OTHERS = ("provides_network", "template_for_dispvms")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VID = re.compile(r"[A-Za-z0-9_.:+/-]{0,255}")


def load(system: System, untrusted: bytes) -> list[str]:
    """Fill a system that has no qube but dom0. Returns remarks: what was left out or mended, one sentence each.

    Pools that the system has already stay: they are this machine's. Labels are replaced. The changes are in the system's
    journal. Raises BadQubesXml; the journal must be undone then.
    """
    if len(system.qubes) > 1:
        raise BadQubesXml("qubes.xml can only be loaded into a system without qubes")
    reader = _Reader(system)
    reader.read(elements(untrusted))
    return reader.remarks


class _Reader:
    def __init__(self, system: System) -> None:
        self.system = system
        self.remarks: list[str] = []

    def read(self, root: Element) -> None:
        """In the order that lets every reference be resolved: all qubes first, then what they say, then what must hold."""
        self._labels(root)
        self._pools(root)
        nodes = [(self._qube(node), node) for node in children(root, "domains", "domain")]
        if sum(qube is self.system.dom0 for qube, _ in nodes) > 1:
            raise BadQubesXml("domains: dom0 is there twice")
        self._globals(root)
        for qube, node in nodes:
            self._properties(qube, _migrated(named_texts(node, "properties", "property", qube.name)))
            self._features(qube, node)
            self._tags(qube, node)
            self._volumes(qube, node)
            self._devices(qube, node)
        self._firewall_netvm(root)
        self._check()

    def _labels(self, root: Element) -> None:
        system = self.system
        found: dict[str, Label] = {}
        for node in children(root, "labels", "label"):
            number = parse_number(attribute(node, "id", "labels").removeprefix("label-"), 1, 1 << 30, "labels")
            try:
                name = labels.check_name(node.text or "", new=False)
                colour = labels.check_colour(attribute(node, "color", "labels"))
            except CloisonError as error:
                raise BadQubesXml(f"labels: {error}") from error
            if name in found or any(label.index == number for label in found.values()):
                raise BadQubesXml(f"labels: label {name} or its number {number} is there twice")
            found[name] = Label(number, _GREY if colour == _GONE_GREY else colour, name)
        if found:
            for name in list(system.labels):
                system.drop_label(name)
        for name, label in found.items():
            system.journal.put("labels", SYSTEM, system.labels, name, label)

    def _pools(self, root: Element) -> None:
        own, found = dict(self.system.pools), set()
        for node in children(root, "pools", "pool"):
            name, driver = attribute(node, "name", "pools"), attribute(node, "driver", "pools")
            if not _WORD.fullmatch(name) or not _WORD.fullmatch(driver) or name in found:
                raise BadQubesXml(f"pools: {name[:60]!r} or its driver has a bad name, or is there twice")
            found.add(name)
            if name in own:
                if own[name].driver != driver:
                    self.remarks.append(f"pool {name} is this system's own, of driver {own[name].driver} instead of {driver}")
                continue
            config = {key: value for key, value in node.attrib.items() if key not in ("name", "driver")}
            self.system.put_pool(Pool(name, driver, config))

    def _qube(self, node: Element) -> Qube:
        """The qube itself, so that others may refer to it."""
        system, klass = self.system, attribute(node, "class", "domains")
        kind = system.kinds.get(klass)
        if kind is None:
            raise BadQubesXml(f"domains: there is no class {klass[:60]!r}")
        if klass == "AdminVM":
            return system.dom0
        identity = named_texts(node, "properties", "property", node.get("id", "domain"))
        try:
            name = QubeName(identity.get("name", ""))
            uuid = Uuid(identity.get("uuid") or system.host.new_uuid())
        except InvalidValue as error:
            raise BadQubesXml(f"domains: {error}") from error
        qid = parse_number(identity.get("qid") or node.get("id", "").removeprefix("domain-"), 1, MAX_QID, name)
        if name in system.qubes or any(other.qid == qid or other.uuid == uuid for other in system.qubes.values()):
            raise BadQubesXml(f"domains: the name, qid or uuid of {name} is another qube's, too")
        if len(system.qubes) > MAX_QUBES:
            raise BadQubesXml(f"domains: there are more than {MAX_QUBES} qubes")
        qube = Qube(system, kind, name, uuid, qid)
        system.journal.put("qubes", qid, system.qubes, name, qube)
        return qube

    # -- properties

    def _globals(self, root: Element) -> None:
        pairs = named_texts(root, "properties", "property", "the system")
        pairs.pop("default_fw_netvm", None)
        self._properties(self.system, pairs)

    def _properties(self, holder: Holder, pairs: Mapping[str, str]) -> None:
        who = holder.subject or "the system"
        for name, text in pairs.items():
            prop = holder.properties.get(name)
            if name in _IDENTITY:
                continue
            if prop is None or prop.read_only:
                self.remarks.append(f"{who}: property {name[:60]!r} is left out, nobody here knows it")
                continue
            try:
                holder.store_value(name, _value(holder, prop, text))
            except CloisonError as error:
                raise BadQubesXml(f"{who}: property {name}: {error}") from error

    def _firewall_netvm(self, root: Element) -> None:
        """The default netvm of network providers was a property of its own once: keep what it meant."""
        system = self.system
        default = named_texts(root, "properties", "property", "the system").get("default_fw_netvm", "")
        if default not in system.qubes or default == system.get_or_none("default_netvm"):
            return
        for qube in list(system.qubes.values()):
            if "netvm" in qube.properties and qube.is_default("netvm") and qube.get("provides_network"):
                qube.store_value("netvm", default)

    # -- what else a qube has

    def _features(self, qube: Qube, node: Element) -> None:
        for name, text in named_texts(node, "features", "feature", qube.name).items():
            try:
                features.check_name(name)
                value = features.check_value(text.encode())
            except CloisonError as error:
                raise BadQubesXml(f"{qube.name}: feature {name[:60]!r}: {error}") from error
            if name != "service.meminfo-writer" or "maxmem" not in qube.properties:
                qube.journal.put("features", qube.qid, qube.features, name, value)
            elif not value:
                # A qube without the service that reports memory was one that is not balanced.
                qube.store_value("maxmem", 0)

    def _tags(self, qube: Qube, node: Element) -> None:
        for child in children(node, "tags", "tag"):
            try:
                tag = features.check_tag(attribute(child, "name", qube.name))
            except CloisonError as error:
                raise BadQubesXml(f"{qube.name}: {error}") from error
            qube.journal.put("tags", qube.qid, qube.tags, tag, None)

    def _volumes(self, qube: Qube, node: Element) -> None:
        for child in children(node, "volume-config", "volume"):
            where = f"{qube.name}: volumes"
            try:
                name = VolumeName(attribute(child, "name", where))
            except InvalidValue as error:
                raise BadQubesXml(f"{where}: {error}") from error
            if name in qube.volumes:
                raise BadQubesXml(f"{where}: {name} is there twice")
            pool = self.system.pools.get(attribute(child, "pool", where))
            if pool is None:
                raise BadQubesXml(f"{where}: there is no pool {child.get('pool', '')[:60]!r}")
            qube.put_volume(_volume(name, pool, child, f"{where}: {name}"))

    def _devices(self, qube: Qube, node: Element) -> None:
        for group in node.iterfind("devices"):
            devclass = attribute(group, "class", qube.name)
            if not _WORD.fullmatch(devclass):
                raise BadQubesXml(f"{qube.name}: {devclass[:60]!r} is not a class of devices")
            for child in group.iterfind("device"):
                assignment = _assignment(devclass, child, qube.name)
                backend, shown = assignment.device.backend, repr(str(assignment.device)[:100])
                if backend != ANY and backend not in self.system.qubes:
                    self.remarks.append(f"{qube.name}: device {shown} is left out, there is no such backend qube")
                elif assignment.mode not in devices.MODES:
                    self.remarks.append(f"{qube.name}: device {shown} is left out, its mode is unknown")
                else:
                    qube.put_assignment(assignment)

    # -- what must hold in the end

    def _check(self) -> None:
        """Templates first: the defaults that later rules look at go along them. Then what can be mended, then the rest."""
        system = self.system
        dom0 = system.dom0
        if "label" not in dom0.values and "black" in system.labels:
            dom0.store_value("label", "black")
        qubes = list(system.qubes.values())
        for qube in qubes:
            if qube is not dom0:
                _check_complete(qube)
            if "template" in qube.values:
                self._rule(qube, "template")
        for names in (_SOFT_DISPVMS, None):
            for holder in (*qubes, system):
                for name in [each for each in holder.values if (each in names if names else each not in _SEEN_BY_OTHERS)]:
                    self._rule(holder, name)
        dispids = [qube.values["dispid"] for qube in qubes if "dispid" in qube.values]
        if len(set(dispids)) < len(dispids) or not all(isinstance(each, int) and 0 <= each <= MAX_DISPID for each in dispids):
            raise BadQubesXml(f"domains: a dispid is there twice, or not between 0 and {MAX_DISPID}")

    def _rule(self, holder: Holder, name: str) -> None:
        """What the Admin API would have said to this value. Kernels and disposables that are not here are mended."""
        who, value = holder.subject or "the system", holder.values[name]
        rule = holder.properties[name].rule
        if rule is None or (value is None and name != "template"):
            return
        try:
            checked = rule(holder, value)
        except CloisonError as error:
            if name in _SOFT_DISPVMS:
                holder.store_value(name, None)
            elif name in _SOFT_KERNELS:
                holder.journal.drop(holder.table, holder.owner, holder.values, name)
            else:
                raise BadQubesXml(f"{who}: property {name}: {error}") from error
            self.remarks.append(f"{who}: property {name} is {'none' if name in _SOFT_DISPVMS else 'unset'} now: {error}")
            return
        if checked != value:
            holder.store_value(name, checked)


def _migrated(pairs: dict[str, str]) -> dict[str, str]:
    """Under today's names: `hvm` and `dispvm_allowed` of older releases."""
    hvm = pairs.pop("hvm", None)
    if hvm is not None:
        pairs.setdefault("virt_mode", "hvm" if parse_flag(hvm, "property hvm") else "pv")
    allowed = pairs.pop("dispvm_allowed", None)
    if allowed is not None:
        pairs.setdefault("template_for_dispvms", allowed)
    return pairs


def _value(holder: Holder, prop: Property, text: str) -> Value:
    """The typed value. An empty number is none, where there may be none. Raises CloisonError."""
    if prop.type == "int" and not text and prop.default is None:
        return None
    return holder.parse(prop, text)


def _check_complete(qube: Qube) -> None:
    for name, prop in qube.properties.items():
        if prop.default is NO_DEFAULT and (prop.keep or prop.write_once) and name not in qube.values:
            raise BadQubesXml(f"{qube.name}: it has no {name}")


def _volume(name: str, pool: Pool, node: Element, where: str) -> Volume:
    if name == "kernel":
        return volumes.kernel(pool.name)
    vid, source = node.get("vid", ""), node.get("source", "")
    for text in (vid, source):
        if not _VID.fullmatch(text) or ".." in text.split("/"):
            raise BadQubesXml(f"{where}: {text[:60]!r} can't name a volume")
    keep, ephemeral = node.get("revisions_to_keep"), node.get("ephemeral")
    flags = {key: parse_flag(node.get(key, "False"), where) for key in ("rw", "snap_on_start", "save_on_stop")}
    return Volume(
        name, pool.name, vid, parse_number(node.get("size", "0"), 0, MAX_SIZE, where), **flags, source=source or None,
        revisions_to_keep=None if keep is None else parse_number(keep, -1, MAX_REVISIONS, where),
        ephemeral=None if ephemeral is None else parse_flag(ephemeral, where),
    )


def _assignment(devclass: str, node: Element, frontend: str) -> Assignment:
    """One device. The checks are those of the Admin API's texts. Raises BadQubesXml."""
    options = {attribute(child, "name", frontend): child.text or "" for child in node.iterfind("option")}
    identity = options.pop("identity", None) or node.get("identity") or ANY
    port, required = node.get("id") or ANY, node.get("required")
    device = Device(devclass, attribute(node, "backend-domain", frontend), port, identity)
    mode = node.get("mode") or "required"
    if required is not None:
        mode = "required" if parse_flag(required, frontend) else "auto-attach"
    pairs = {"device_id": identity, "mode": mode, **{f"_{key}": value for key, value in options.items()}}
    try:
        devices.check_pattern(device)
        return devices.parse_assignment(device, serialise(pairs).encode())
    except CloisonError as error:
        raise BadQubesXml(f"{frontend}: device {str(device)[:100]!r}: {error}") from error
