"""Which colour a qube has: that of its label, whatever the qube itself says."""
from __future__ import annotations

import json
import re
from collections.abc import Mapping

from cloison.client.connection import Connection
from cloison.client.domains import DOM0
from cloison.errors import CloisonError

UNKNOWN = "#888888"
LABELS = {
    "red": "#cc0000", "orange": "#f57900", "yellow": "#edd400", "green": "#73d216",
    "gray": "#555555", "blue": "#3465a4", "purple": "#75507b", "black": "#000000",
}
_COLOUR = re.compile(r"0x[0-9a-f]{6}")
_DISPOSABLE = "@dispvm:"


def colours(icons: Mapping[str, str], connection: Connection) -> dict[str, str]:
    """`#rrggbb` by name: as qubesd says, or from the icon's name if it can't be asked."""
    found = {name: LABELS.get(icon.rpartition("-")[2], UNKNOWN) for name, icon in icons.items()}
    known = _from_qubesd(connection)
    found |= known
    found |= {name: known[name.removeprefix(_DISPOSABLE)] for name in icons
              if name.startswith(_DISPOSABLE) and name.removeprefix(_DISPOSABLE) in known}
    return found


def _from_qubesd(connection: Connection) -> dict[str, str]:
    try:
        domains = json.loads(connection.call(DOM0, "internal.GetSystemInfo", internal=True))["domains"]
        labels = {name: entry.get("label") for name, entry in domains.items()}
    except (CloisonError, OSError, ValueError, KeyError, AttributeError, TypeError):
        return {}
    return {name: f"#{label[2:]}" for name, label in labels.items() if isinstance(label, str) and _COLOUR.fullmatch(label)}
