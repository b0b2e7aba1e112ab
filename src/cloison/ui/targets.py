"""How the targets of a question are named and ordered for a person, in a window and on a terminal alike."""
from __future__ import annotations

_DISPOSABLE = "@dispvm:"


def shown(target: str) -> str:
    if target.startswith(_DISPOSABLE):
        return f"new disposable of {target.removeprefix(_DISPOSABLE)}"
    return f"{target} (this computer)" if target == "dom0" else target


def order(target: str) -> tuple[bool, bool, str]:
    """A key to sort by: qubes, then disposables, then the host."""
    return target == "dom0", target.startswith("@"), target
