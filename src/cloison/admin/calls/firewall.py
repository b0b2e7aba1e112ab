"""Firewall rules of a qube, kept and served exactly (reference/admin-api.md 9). A provider of network enforces them."""
from __future__ import annotations

from cloison.admin.qubesd import Call
from cloison.errors import QubeError
from cloison.model import firewall, firewall_xml
from cloison.model.domains import Qube


def rules_of(qube: Qube) -> list[firewall.Rule]:
    """Raises QubeError for a qube that can have none."""
    if not qube.kind.machine:
        raise QubeError(f"{qube.name} is of class {qube.klass}: it has no firewall here")
    return firewall.parse_rules(qube.texts.get("firewall", firewall.DEFAULT).encode())


def get(call: Call) -> str:
    return firewall.to_text(firewall.unexpired(rules_of(call.dest), call.system.host.now()))


def set_(call: Call) -> None:
    """The whole new list; an empty one drops everything. What it says is looked at first, then whose it is to be."""
    rules = firewall.parse_rules(call.payload)
    text = firewall.to_text(firewall.check_new(rules, rules_of(call.dest)))
    with call.qubesd.transaction():
        call.dest.put_text("firewall", text)
        call.system.journal.emit(call.dest.name, "firewall-changed")


def export(call: Call) -> str:
    """The rules as a firewall.xml; empty where none were ever set."""
    return firewall_xml.dump(firewall.parse_rules(get(call).encode())).decode() if "firewall" in call.dest.texts else ""


def reload(call: Call) -> None:
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "firewall-changed")
