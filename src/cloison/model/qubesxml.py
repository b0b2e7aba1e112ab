"""qubes.xml: the store of Qubes OS 4.x as bytes, read into our model and written from it (reference/admin-api.md 17).

For opening a system that Qubes OS wrote, and for the copy inside a backup. Reading fills a system through its journal, so
the caller stores all of it or undoes all of it. Firewall rules and notes are kept elsewhere there, and are not in this file.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat
from xml.sax.saxutils import escape

from cloison.errors import CloisonError
from cloison.model import devices, features, labels, volumes
from cloison.model.devices import Assignment, Device
from cloison.model.domains import MAX_QID, REMOVING, SYSTEM, Qube, System
from cloison.model.labels import Label
from cloison.model.properties import NO_DEFAULT, Holder, Property, Value, parse_bool, parse_int, to_text
from cloison.model.volumes import Pool, Volume
from cloison.values import InvalidValue, QubeName, Uuid, VolumeName

MAX_BYTES = 16 << 20
MAX_DEPTH = 6               # qubes, domains, domain, devices, device, option
MAX_ELEMENTS = 500_000
MAX_ATTRIBUTES = 32
MAX_QUBES = 2000
MAX_SIZE = 1 << 60          # bytes of a volume
MAX_REVISIONS = 1_000_000
MAX_DISPID = 9999
MAX_IDENTITY = 1024         # characters of a device's identity
_GONE_GREY, _GREY = "0x555753", "0x555555"
_IDENTITY = ("name", "qid", "uuid")
_SOFT_KERNELS = ("kernel", "default_kernel")
_SOFT_DISPVMS = ("default_dispvm", "management_dispvm")
# Asked of the other end, too: of the netvm by its clients, of the template by its disposables.
_SEEN_BY_OTHERS = ("provides_network", "template_for_dispvms")
_PORT = re.compile(r"[a-zA-Z0-9._-]{1,255}|\*")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_VID = re.compile(r"[A-Za-z0-9_.:+/-]{0,255}")
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class BadQubesXml(CloisonError):
    """Not a qubes.xml, or one that contradicts itself. `str()` says where and why."""

    hint = "Nothing was taken from it. A store that Qubes OS itself can load is taken."


# -- bytes to elements -----------------------------------------------------------------------------------------------------


class _Bounded:
    """What expat calls: builds the elements, and ends at the first thing out of bounds."""

    def __init__(self) -> None:
        self.builder = TreeBuilder()
        self._depth = self._count = 0

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        self._count += 1
        if self._depth > MAX_DEPTH:
            raise BadQubesXml(f"qubes.xml: elements are nested deeper than {MAX_DEPTH}")
        if self._count > MAX_ELEMENTS or len(attributes) > MAX_ATTRIBUTES:
            raise BadQubesXml(f"qubes.xml: more than {MAX_ELEMENTS} elements, or {MAX_ATTRIBUTES} attributes in one")
        self.builder.start(tag, attributes)

    def end(self, tag: str) -> None:
        self._depth -= 1
        self.builder.end(tag)

    def refuse(self, *_: object) -> None:
        """A document type is where entities are declared: none is needed, so none is read."""
        raise BadQubesXml("qubes.xml: it declares a document type")


def _elements(untrusted: bytes) -> Element:
    """The root element. Raises BadQubesXml."""
    if len(untrusted) > MAX_BYTES:
        raise BadQubesXml(f"qubes.xml: longer than {MAX_BYTES} bytes")
    bounded = _Bounded()
    parser = expat.ParserCreate("utf-8")
    parser.buffer_text = True
    parser.StartElementHandler = bounded.start
    parser.EndElementHandler = bounded.end
    parser.CharacterDataHandler = bounded.builder.data
    parser.StartDoctypeDeclHandler = bounded.refuse
    try:
        parser.Parse(untrusted, True)
    except expat.ExpatError as error:
        raise BadQubesXml(f"qubes.xml: line {error.lineno}: {expat.ErrorString(error.code)}") from error
    root = bounded.builder.close()
    if root.tag != "qubes":
        raise BadQubesXml(f"qubes.xml: its root is {root.tag[:30]!r}, not 'qubes'")
    return root


def _each(parent: Element, group: str, tag: str) -> Iterator[Element]:
    for container in parent.iterfind(group):
        yield from container.iterfind(tag)


def _attribute(node: Element, name: str, where: str) -> str:
    value = node.get(name)
    if not value:
        raise BadQubesXml(f"{where}: an element {node.tag} has no {name}")
    return value


def _pairs(parent: Element, group: str, tag: str, where: str) -> dict[str, str]:
    """Elements with a name and a text; each name once. `ref` is an older spelling of a reference."""
    pairs: dict[str, str] = {}
    for node in _each(parent, group, tag):
        name = _attribute(node, "name", where)
        if name in pairs:
            raise BadQubesXml(f"{where}: {tag} {name[:60]!r} is there twice")
        pairs[name] = node.get("ref") or node.text or ""
    return pairs


def _number(text: str, least: int, most: int, where: str) -> int:
    try:
        number = parse_int(text[:20])
    except CloisonError as error:
        raise BadQubesXml(f"{where}: {error}") from error
    if not least <= number <= most:
        raise BadQubesXml(f"{where}: {number} is not between {least} and {most}")
    return number


def _flag(text: str, where: str) -> bool:
    try:
        return parse_bool(text)
    except CloisonError as error:
        raise BadQubesXml(f"{where}: {error}") from error


# -- elements to model -----------------------------------------------------------------------------------------------------


def load(system: System, untrusted: bytes) -> list[str]:
    """Fill a system that has no qube but dom0. Returns remarks: what was left out or mended, one sentence each.

    Pools that the system has already stay: they are this machine's. Labels are replaced. The changes are in the system's
    journal. Raises BadQubesXml; the journal must be undone then.
    """
    if len(system.qubes) > 1:
        raise BadQubesXml("qubes.xml can only be loaded into a system without qubes")
    reader = _Reader(system)
    reader.read(_elements(untrusted))
    return reader.remarks


class _Reader:
    def __init__(self, system: System) -> None:
        self.system = system
        self.remarks: list[str] = []

    def read(self, root: Element) -> None:
        """In the order that lets every reference be resolved: all qubes first, then what they say, then what must hold."""
        self._labels(root)
        self._pools(root)
        nodes = [(self._qube(node), node) for node in _each(root, "domains", "domain")]
        if sum(qube is self.system.dom0 for qube, _ in nodes) > 1:
            raise BadQubesXml("domains: dom0 is there twice")
        self._globals(root)
        for qube, node in nodes:
            self._properties(qube, _migrated(_pairs(node, "properties", "property", qube.name)))
            self._features(qube, node)
            self._tags(qube, node)
            self._volumes(qube, node)
            self._devices(qube, node)
        self._firewall_netvm(root)
        self._check()

    def _labels(self, root: Element) -> None:
        system = self.system
        found: dict[str, Label] = {}
        for node in _each(root, "labels", "label"):
            number = _number(_attribute(node, "id", "labels").removeprefix("label-"), 1, 1 << 30, "labels")
            try:
                name = labels.check_name(node.text or "", new=False)
                colour = labels.check_colour(_attribute(node, "color", "labels"))
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
        for node in _each(root, "pools", "pool"):
            name, driver = _attribute(node, "name", "pools"), _attribute(node, "driver", "pools")
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
        system, klass = self.system, _attribute(node, "class", "domains")
        kind = system.kinds.get(klass)
        if kind is None:
            raise BadQubesXml(f"domains: there is no class {klass[:60]!r}")
        if klass == "AdminVM":
            return system.dom0
        identity = _pairs(node, "properties", "property", node.get("id", "domain"))
        try:
            name = QubeName(identity.get("name", ""))
            uuid = Uuid(identity.get("uuid") or system.host.new_uuid())
        except InvalidValue as error:
            raise BadQubesXml(f"domains: {error}") from error
        qid = _number(identity.get("qid") or node.get("id", "").removeprefix("domain-"), 1, MAX_QID, name)
        if name in system.qubes or any(other.qid == qid or other.uuid == uuid for other in system.qubes.values()):
            raise BadQubesXml(f"domains: the name, qid or uuid of {name} is another qube's, too")
        if len(system.qubes) > MAX_QUBES:
            raise BadQubesXml(f"domains: there are more than {MAX_QUBES} qubes")
        qube = Qube(system, kind, name, uuid, qid)
        system.journal.put("qubes", qid, system.qubes, name, qube)
        return qube

    # -- properties

    def _globals(self, root: Element) -> None:
        pairs = _pairs(root, "properties", "property", "the system")
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
        default = _pairs(root, "properties", "property", "the system").get("default_fw_netvm", "")
        if default not in system.qubes or default == system.get_or_none("default_netvm"):
            return
        for qube in list(system.qubes.values()):
            if "netvm" in qube.properties and qube.is_default("netvm") and qube.get("provides_network"):
                qube.store_value("netvm", default)

    # -- what else a qube has

    def _features(self, qube: Qube, node: Element) -> None:
        for name, text in _pairs(node, "features", "feature", qube.name).items():
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
        for child in _each(node, "tags", "tag"):
            try:
                tag = features.check_tag(_attribute(child, "name", qube.name))
            except CloisonError as error:
                raise BadQubesXml(f"{qube.name}: {error}") from error
            qube.journal.put("tags", qube.qid, qube.tags, tag, None)

    def _volumes(self, qube: Qube, node: Element) -> None:
        for child in _each(node, "volume-config", "volume"):
            where = f"{qube.name}: volumes"
            try:
                name = VolumeName(_attribute(child, "name", where))
            except InvalidValue as error:
                raise BadQubesXml(f"{where}: {error}") from error
            if name in qube.volumes:
                raise BadQubesXml(f"{where}: {name} is there twice")
            pool = self.system.pools.get(_attribute(child, "pool", where))
            if pool is None:
                raise BadQubesXml(f"{where}: there is no pool {child.get('pool', '')[:60]!r}")
            qube.put_volume(_volume(name, pool, child, f"{where}: {name}"))

    def _devices(self, qube: Qube, node: Element) -> None:
        for group in node.iterfind("devices"):
            devclass = _attribute(group, "class", qube.name)
            if not _WORD.fullmatch(devclass):
                raise BadQubesXml(f"{qube.name}: {devclass[:60]!r} is not a class of devices")
            for child in group.iterfind("device"):
                assignment = _assignment(devclass, child, qube.name)
                backend, shown = assignment.device.backend, repr(str(assignment.device)[:100])
                if backend != devices.ANY and backend not in self.system.qubes:
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
        pairs.setdefault("virt_mode", "hvm" if _flag(hvm, "property hvm") else "pv")
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
    flags = {key: _flag(node.get(key, "False"), where) for key in ("rw", "snap_on_start", "save_on_stop")}
    return Volume(
        name, pool.name, vid, _number(node.get("size", "0"), 0, MAX_SIZE, where), **flags, source=source or None,
        revisions_to_keep=None if keep is None else _number(keep, -1, MAX_REVISIONS, where),
        ephemeral=None if ephemeral is None else _flag(ephemeral, where),
    )


def _assignment(devclass: str, node: Element, frontend: str) -> Assignment:
    """One device. The checks are those of the Admin API's texts. Raises BadQubesXml."""
    options = {_attribute(child, "name", frontend): child.text or "" for child in node.iterfind("option")}
    identity = options.pop("identity", None) or node.get("identity") or devices.ANY
    port, required = node.get("id") or devices.ANY, node.get("required")
    device = Device(devclass, _attribute(node, "backend-domain", frontend), port, identity)
    mode = node.get("mode") or "required"
    if required is not None:
        mode = "required" if _flag(required, frontend) else "auto-attach"
    pairs = {"device_id": identity, "mode": mode, **{f"_{key}": value for key, value in options.items()}}
    if not _PORT.fullmatch(port) or len(identity) > MAX_IDENTITY:
        raise BadQubesXml(f"{frontend}: {port[:60]!r} is not a device port, or its device's identity is too long")
    try:
        return devices.parse_assignment(device, devices.serialise(pairs).encode(), frontend)
    except CloisonError as error:
        raise BadQubesXml(f"{frontend}: device {str(device)[:100]!r}: {error}") from error


# -- model to bytes --------------------------------------------------------------------------------------------------------


def export(system: System) -> bytes:
    """The same form. Qubes that are being removed are left out; characters that XML can't hold become spaces."""
    out = _Writer()
    out.open("qubes")
    out.open("labels")
    for label in sorted(system.labels.values(), key=lambda label: label.index):
        out.element("label", {"id": f"label-{label.index}", "color": label.colour}, label.name)
    out.close("labels")
    out.group("pools", "pool", [{"name": pool.name, **pool.config, "driver": pool.driver} for pool in system.pools.values()])
    _export_properties(out, system)
    out.open("domains")
    for qube in sorted(system.qubes.values(), key=lambda qube: qube.qid):
        if qube.state != REMOVING:
            _export_qube(out, qube)
    out.close("domains")
    out.close("qubes")
    return "".join(out.lines).encode()


class _Writer:
    """Lines of XML, indented as Qubes OS does."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._depth = 0

    def open(self, tag: str, attributes: Mapping[str, str] | None = None) -> None:
        self._line(f"<{tag}{_spelled(attributes or {})}>")
        self._depth += 1

    def close(self, tag: str) -> None:
        self._depth -= 1
        self._line(f"</{tag}>")

    def element(self, tag: str, attributes: Mapping[str, str], text: str | None = None) -> None:
        """Without text it is empty; an empty text is an empty value."""
        self._line(f"<{tag}{_spelled(attributes)}" + ("/>" if text is None else f">{_escaped(text)}</{tag}>"))

    def group(self, tag: str, child: str, rows: list[dict[str, str]]) -> None:
        """Elements that have attributes only."""
        if not rows:
            return self.element(tag, {})
        self.open(tag)
        for row in rows:
            self.element(child, row)
        return self.close(tag)

    def _line(self, text: str) -> None:
        self.lines.append("  " * self._depth + text + "\n")


def _escaped(text: str) -> str:
    return escape(_NOT_XML.sub(" ", text), {"\r": "&#13;"})


def _spelled(attributes: Mapping[str, str]) -> str:
    """Attributes; blanks other than the space would be read back as spaces if they stood as they are."""
    blanks = {'"': "&quot;", "\n": "&#10;", "\t": "&#9;", "\r": "&#13;"}
    return "".join(f' {key}="{escape(_NOT_XML.sub(" ", value), blanks)}"' for key, value in attributes.items())


def _export_properties(out: _Writer, holder: Holder) -> None:
    """In the order of declaration, which is that of Qubes OS: by load stage and name."""
    out.open("properties")
    for name in holder.properties:
        if name in holder.values:
            out.element("property", {"name": name}, to_text(holder.values[name]))
    out.close("properties")


def _export_qube(out: _Writer, qube: Qube) -> None:
    out.open("domain", {"id": f"domain-{qube.qid}", "class": qube.klass})
    _export_properties(out, qube)
    out.open("features")
    for name, value in qube.features.items():
        out.element("feature", {"name": name}, value)
    out.close("features")
    for devclass in dict.fromkeys(assignment.device.devclass for assignment in qube.assignments.values()):
        out.open("devices", {"class": devclass})
        for assignment in qube.assignments.values():
            if assignment.device.devclass == devclass:
                _export_device(out, assignment)
        out.close("devices")
    out.group("tags", "tag", [{"name": tag} for tag in qube.tags])
    if qube.volumes:
        out.group("volume-config", "volume", [_volume_attributes(qube, volume) for volume in qube.volumes.values()])
    out.close("domain")


def _export_device(out: _Writer, assignment: Assignment) -> None:
    device = assignment.device
    attributes = {"backend-domain": device.backend, "id": device.port, "mode": assignment.mode, "identity": device.identity}
    if not assignment.options:
        return out.element("device", attributes)
    out.open("device", attributes)
    for name, value in assignment.options.items():
        out.element("option", {"name": name}, value)
    return out.close("device")


def _volume_attributes(qube: Qube, volume: Volume) -> dict[str, str]:
    """The kernel's volume is named after the kernel that the qube has just now."""
    vid = str(qube.get_or_none("kernel") or "") if volume.name == "kernel" else volume.vid
    attributes = {"name": volume.name, "pool": volume.pool, "vid": vid}
    if volume.revisions_to_keep is not None:
        attributes["revisions_to_keep"] = str(volume.revisions_to_keep)
    for key in ("rw", "save_on_stop", "snap_on_start"):
        attributes[key] = str(getattr(volume, key))
    if volume.ephemeral is not None:
        attributes["ephemeral"] = str(volume.ephemeral)
    if volume.size:
        attributes["size"] = str(volume.size)
    if volume.source:
        attributes["source"] = volume.source
    return attributes
