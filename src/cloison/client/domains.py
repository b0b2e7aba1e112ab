"""Qubes as the Admin API describes them: the listing, properties, volumes and their texts (reference/admin-api.md 5).

Only reads; what changes a qube is one call, and stands in the tool that makes it.
"""
from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from cloison.client.connection import Connection
from cloison.errors import CloisonError, FeatureNotFound, PeerError

DOM0 = "dom0"


def lines(reply: bytes) -> list[str]:
    """Lines of a reply. Only a newline ends one: values may hold other characters that Python counts as line ends."""
    return [line for line in reply.decode("utf-8", "replace").split("\n") if line]


class Qube(NamedTuple):
    """One line of admin.vm.List."""

    name: str
    klass: str
    state: str
    uuid: str

    @property
    def running(self) -> bool:
        """Not halted, as Qubes OS's tools mean it: a paused qube counts."""
        return self.state not in ("Halted", "NA")


class Property(NamedTuple):
    """`value` is text; empty for no value. `kind` is str, int, bool, vm or label."""

    value: str
    kind: str
    default: bool

    @property
    def text(self) -> str | None:
        """What a person is shown: None if there is no value."""
        return self.value if self.value or self.kind == "str" else None

    @property
    def typed(self) -> str | int | bool | None:
        """As Python has it: a number, True or False, text (a name, for a qube or a label), or None if there is no value."""
        if self.kind == "bool":
            return None if not self.value else self.value == "True"
        if self.kind == "int":
            return int(self.value) if self.value else None
        return self.text


def list_qubes(connection: Connection, dest: str = DOM0) -> dict[str, Qube]:
    """By name, in qubesd's order (dom0 first). `dest`: one qube only."""
    return parse_qubes(connection.call(dest, "admin.vm.List"))


def parse_qubes(reply: bytes) -> dict[str, Qube]:
    """Content of a List reply."""
    qubes = {}
    for line in lines(reply):
        name, _, rest = line.partition(" ")
        words = dict(word.partition("=")[::2] for word in rest.split(" "))
        qubes[name] = Qube(name, words.get("class", ""), words.get("state", "NA"), words.get("uuid", ""))
    return qubes


def property_prefix(dest: str | None) -> str:
    """Methods for a qube's properties, or for the global ones if there is no qube."""
    return "admin.property." if dest is None else "admin.vm.property."


def list_properties(connection: Connection, dest: str | None) -> list[str]:
    return lines(connection.call(dest or DOM0, property_prefix(dest) + "List"))


def get_property(connection: Connection, dest: str | None, name: str) -> Property:
    return parse_property(connection.call(dest or DOM0, property_prefix(dest) + "Get", name))


def get_properties(connection: Connection, dest: str | None) -> dict[str, Property]:
    return parse_properties(connection.call(dest or DOM0, property_prefix(dest) + "GetAll"))


def get_all_properties(connection: Connection, names: Iterable[str]) -> dict[str, dict[str, Property]]:
    """Of many qubes. One that went away meanwhile is left out."""
    names = list(names)
    replies = connection.gather((name, "admin.vm.property.GetAll", "") for name in names)
    return {
        name: parse_properties(reply) for name, reply in zip(names, replies, strict=True) if not isinstance(reply, CloisonError)
    }


def parse_properties(reply: bytes) -> dict[str, Property]:
    """Content of a GetAll reply."""
    properties = {}
    for line in lines(reply):
        name, _, rest = line.partition(" ")
        properties[name] = _property(_unescape(rest))
    return properties


def parse_property(reply: bytes) -> Property:
    """Content of a Get reply."""
    return _property(reply.decode("utf-8", "replace"))


def _property(text: str) -> Property:
    """`default=D type=T VALUE`. Raises PeerError for anything else."""
    words = text.split(" ", 2)
    if len(words) != 3 or not words[0].startswith("default=") or not words[1].startswith("type="):
        raise PeerError("not a property", text[:60])
    return Property(words[2], words[1].removeprefix("type="), words[0] == "default=True")


def _unescape(text: str) -> str:
    """Undo `\\\\` and `\\n` of GetAll."""
    return "\\".join(part.replace("\\n", "\n") for part in text.split("\\\\"))


def features(connection: Connection, dest: str) -> dict[str, str]:
    """All features set on this qube, in qubesd's order."""
    names = lines(connection.call(dest, "admin.vm.feature.List"))
    replies = connection.gather((dest, "admin.vm.feature.Get", name) for name in names)
    return {name: reply.decode() for name, reply in zip(names, replies, strict=True) if isinstance(reply, bytes)}


def feature(connection: Connection, dest: str, name: str, *, with_template: bool = False) -> str | None:
    """The feature's value, or None if it is not set. `with_template`: also where the qube's template sets it."""
    method = "CheckWithTemplate" if with_template else "Get"
    try:
        return connection.call(dest, f"admin.vm.feature.{method}", name).decode()
    except FeatureNotFound:
        return None


def tags(connection: Connection, dest: str) -> list[str]:
    return lines(connection.call(dest, "admin.vm.tag.List"))


def volumes(connection: Connection, dest: str) -> list[str]:
    """Names of the qube's volumes."""
    return lines(connection.call(dest, "admin.vm.volume.List"))


def volume_info(connection: Connection, dest: str, volume: str) -> dict[str, str]:
    return key_values(connection.call(dest, "admin.vm.volume.Info", volume))


def key_values(reply: bytes) -> dict[str, str]:
    """Lines of `key=value`."""
    return dict(line.partition("=")[::2] for line in lines(reply))
