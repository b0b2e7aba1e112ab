"""What policy decisions are made of, and which events change it (reference/qrexec.md 18).

A decision asks for these facts each time, so the text made of them is kept; an event that is missing here would let policy
decide on what was true before.
"""
from __future__ import annotations

import json

from cloison.model.domains import Qube, System
from cloison.model.journal import Event

_EVENTS = frozenset((
    "domain-add", "domain-delete", "domain-spawn", "domain-start", "domain-start-failed", "domain-stopped", "domain-shutdown",
    "domain-paused", "domain-unpaused", "domain-tag-add", "domain-tag-delete",
))
_OF_FEATURES = ("domain-feature-set", "domain-feature-delete")
_OF_PROPERTIES = ("property-set", "property-reset", "property-del")
_PROPERTIES = frozenset((
    "template_for_dispvms", "default_dispvm", "icon", "label", "guivm", "relayvm", "transport_rpc", "uuid", "default_guivm",
    "template",
))


def changes_facts(event: Event) -> bool:
    kind, _, name = event.name.partition(":")
    if kind in _EVENTS:
        return True
    return (kind in _OF_FEATURES and name == "internal") or (kind in _OF_PROPERTIES and name in _PROPERTIES)


def system_info(system: System) -> str:
    return json.dumps({"domains": {qube.name: _facts(qube) for qube in system.sorted_qubes()}})


def _facts(qube: Qube) -> dict[str, object]:
    label = qube.system.labels.get(str(qube.get_or_none("label")))
    return {
        "tags": sorted(qube.tags),
        "type": qube.klass,
        "template_for_dispvms": bool(qube.get_or_none("template_for_dispvms")),
        "default_dispvm": qube.get_or_none("default_dispvm"),
        "icon": label.icon if label else None,
        "label": label.colour if label else None,
        "guivm": qube.get_or_none("guivm"),
        "relayvm": qube.get_or_none("relayvm"),
        "transport_rpc": qube.get_or_none("transport_rpc"),
        "internal": qube.features.get("internal"),
        "power_state": str(qube.power),
        "uuid": qube.uuid,
    }
