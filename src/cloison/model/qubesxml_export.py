"""Writes the model as a qubes.xml, in the form that Qubes OS 4.x reads (reference/admin-api.md 17)."""
from __future__ import annotations

import re
from collections.abc import Mapping
from xml.sax.saxutils import escape

from cloison.model.devices import Assignment
from cloison.model.domains import REMOVING, Qube, System
from cloison.model.properties import Holder, to_text
from cloison.model.volumes import Volume

_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


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
