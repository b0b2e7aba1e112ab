"""All that policy knows of qubes: the part of `internal.GetSystemInfo` that decisions read (reference/qrexec.md 18).

Made once per change of the system and then only read, so what a request may need is prepared here.
"""
from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from cloison.errors import CloisonError

HOST = "dom0"
HOST_SPELLINGS = frozenset({HOST, "@adminvm", "uuid:00000000-0000-0000-0000-000000000000"})
MAX_QUBES = 65_536
MAX_TEXT = 4_096        # characters of any one text
MAX_TAGS = 65_536


class BadFacts(CloisonError):
    """The description of the system is not of the agreed shape. Nothing may be decided from it."""


class Qube(NamedTuple):
    """One qube, the host included. `alias` is `uuid:<uuid>`; names of other qubes are not checked for existence."""

    name: str
    alias: str
    klass: str
    tags: frozenset[str]
    template_for_dispvms: bool
    default_dispvm: str | None
    running: bool
    internal: bool
    relayvm: str | None
    transport_rpc: str | None


class Facts:
    """Every qube, by name and by `uuid:` alias."""

    __slots__ = ("disposables", "hidden", "names", "qubes")

    def __init__(self, qubes: Mapping[str, Qube]) -> None:
        self.names = frozenset(qubes)
        self.qubes = {**{qube.alias: qube for qube in qubes.values()}, **qubes}
        self.disposables = frozenset(f"@dispvm:{qube.name}" for qube in qubes.values() if qube.template_for_dispvms)
        internal = [qube.name for qube in qubes.values() if qube.internal]
        self.hidden = frozenset(internal) | {f"@dispvm:{name}" for name in internal}

    def template(self, name: str) -> Qube | None:
        """The disposable template of that name or alias, if there is one."""
        qube = self.qubes.get(name)
        return qube if qube is not None and qube.template_for_dispvms else None


def facts_from_system_info(data: object) -> Facts:
    """What `internal.GetSystemInfo` answers, decoded from JSON; keys without use here are ignored. Raises BadFacts."""
    domains = data.get("domains") if isinstance(data, dict) else None
    if not isinstance(domains, dict):
        raise BadFacts("the system's description has no domains")
    if len(domains) > MAX_QUBES:
        raise BadFacts(f"the system's description has more than {MAX_QUBES} qubes")
    return Facts({name: _qube(name, entry) for name, entry in domains.items()})


def _qube(name: object, entry: object) -> Qube:
    if not isinstance(name, str) or not name or len(name) > MAX_TEXT or not isinstance(entry, dict):
        raise BadFacts("an entry of the system's description is no qube")
    return Qube(
        name=name,
        alias=f"uuid:{_text(name, entry, 'uuid')}",
        klass=_text(name, entry, "type"),
        tags=_tags(name, entry.get("tags")),
        template_for_dispvms=_flag(name, entry, "template_for_dispvms"),
        default_dispvm=_text_or_none(name, entry, "default_dispvm"),
        running=_text(name, entry, "power_state") == "Running",
        internal=bool(entry.get("internal")),
        relayvm=_text_or_none(name, entry, "relayvm"),
        transport_rpc=_text_or_none(name, entry, "transport_rpc"),
    )


def _text(name: str, entry: Mapping[str, object], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str) or len(value) > MAX_TEXT:
        raise BadFacts(f"{key} of {name} is not a text")
    return value


def _text_or_none(name: str, entry: Mapping[str, object], key: str) -> str | None:
    """Absent, null and empty all mean none."""
    return _text(name, entry, key) or None if entry.get(key) is not None else None


def _flag(name: str, entry: Mapping[str, object], key: str) -> bool:
    value = entry.get(key)
    if not isinstance(value, bool):
        raise BadFacts(f"{key} of {name} is neither true nor false")
    return value


def _tags(name: str, value: object) -> frozenset[str]:
    if not isinstance(value, list) or len(value) > MAX_TAGS:
        raise BadFacts(f"tags of {name} are no list")
    if not all(isinstance(tag, str) and len(tag) <= MAX_TEXT for tag in value):
        raise BadFacts(f"a tag of {name} is not a text")
    return frozenset(value)
