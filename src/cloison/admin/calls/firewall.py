"""Firewall rules of a qube, kept and served exactly (reference/admin-api.md 9). A provider of network enforces them."""
from __future__ import annotations

from cloison.admin.qubesd import Call
from cloison.errors import QubeError
from cloison.model import firewall
from cloison.model.domains import Qube


def rules_of(qube: Qube) -> list[firewall.Rule]:
    """Raises QubeError for a qube that can have none."""
    if not qube.kind.machine:
        raise QubeError(f"{qube.name} is a {qube.klass}: it has no firewall here")
    return firewall.parse_rules(qube.texts.get("firewall", firewall.DEFAULT).encode())


def get(call: Call) -> str:
    return firewall.to_text(firewall.unexpired(rules_of(call.dest), call.system.host.now()))


def set_(call: Call) -> None:
    """The whole new list; an empty one drops everything."""
    rules_of(call.dest)
    text = firewall.to_text(firewall.parse_rules(call.payload))
    with call.qubesd.transaction():
        call.dest.put_text("firewall", text)
        call.system.journal.emit(call.dest.name, "firewall-changed")


def reload(call: Call) -> None:
    with call.qubesd.transaction():
        call.system.journal.emit(call.dest.name, "firewall-changed")
