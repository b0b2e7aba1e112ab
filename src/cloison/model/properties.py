"""Declaring a property once, for everyone who reads it: the Admin API, the store, the tools, the manual.

A property has a type, a default (a value, a computation, or none at all), a rule for what may be set, and an effect on
other things when it changes. A holder (a qube, or the system) has values for the explicitly set ones.
References to qubes and labels are kept by name: names never change.
"""
from __future__ import annotations

import abc
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cloison.errors import BadPropertyValue, BadValue, LabelNotFound, NoSuchProperty
from cloison.model.journal import Journal
from cloison.values import InvalidValue, QubeName

Value = str | int | bool | None
MAX_INT = 2**63 - 1
MAX_TEXT = 65536
_WORDS = {"0": False, "no": False, "false": False, "off": False, "1": True, "yes": True, "true": True, "on": True}
_PRINTABLE = frozenset(string.printable)


class Unset(Exception):
    """The property is not set and has no default, or its default can't be computed."""


class NoDefault:
    """The default of a property that has none."""


NO_DEFAULT = NoDefault()


@dataclass(frozen=True)
class Property:
    """One property of a kind of qube, or of the system.

    `default`: a value, or a function of the holder, which may raise Unset. `rule(holder, value)` returns what is stored or
    raises; `effect(holder, new, old)` keeps other things in step after a change. `read_only` ones are computed, never stored.
    """

    name: str
    type: str                               # str int bool vm label
    doc: str
    default: Any = NO_DEFAULT
    rule: Callable[[Any, Any], Value] | None = None
    effect: Callable[[Any, Value, Value], None] | None = None
    stage: int = 2
    read_only: bool = False
    write_once: bool = False
    keep: str = ""                          # why it can't be reset, if it can't
    reset_rule: bool = False                # whether the default must pass the rule before it is gone back to
    clone: bool = True
    inherited: bool = False                 # a template's change is announced on the qubes that use the default


def parse_bool(text: str) -> bool:
    """Raises BadValue."""
    try:
        return _WORDS[text.lower()]
    except KeyError:
        raise BadValue(f"{text[:60]!r} is not a boolean: use True or False") from None


def parse_int(text: str) -> int:
    """Raises BadValue."""
    try:
        number = int(text)
    except ValueError:
        raise BadValue(f"{text[:60]!r} is not an integer") from None
    if abs(number) > MAX_INT:
        raise BadValue("the number is too large")
    return number


def to_text(value: Value) -> str:
    """As the Admin API sends a value: None is empty."""
    return "" if value is None else str(value)


class Holder(abc.ABC):
    """Something with properties. `subject` names it in events; `owner` is its key in the store."""

    table: str = "properties"

    def __init__(self, properties: Mapping[str, Property], journal: Journal, *, subject: str, owner: int) -> None:
        self.properties = properties
        self.journal = journal
        self.subject, self.owner = subject, owner
        self.values: dict[str, Value] = {}

    def property(self, name: str) -> Property:
        """Raises NoSuchProperty."""
        try:
            return self.properties[name]
        except KeyError:
            raise NoSuchProperty(f"{self.subject or 'the system'} has no property {name[:60]!r}") from None

    def get(self, name: str) -> Any:
        """The effective value. Raises Unset, NoSuchProperty."""
        try:
            return self.values[name]
        except KeyError:
            return self.default(name)

    def default(self, name: str) -> Any:
        """The value it has when unset. Raises Unset, NoSuchProperty."""
        default = self.property(name).default
        if default is NO_DEFAULT:
            raise Unset(name)
        return default(self) if callable(default) else default

    def get_or_none(self, name: str) -> Any:
        """The effective value; None also where there is none or no such property."""
        if name not in self.properties:
            return None
        try:
            return self.get(name)
        except Unset:
            return None

    def is_default(self, name: str) -> bool:
        return name not in self.values

    # -- changes ------------------------------------------------------------------------------------------------

    @abc.abstractmethod
    def resolve_qube(self, name: str) -> bool:
        """Whether a qube of this name exists on this machine: a RemoteVM is elsewhere."""

    @abc.abstractmethod
    def resolve_label(self, text: str) -> str | None:
        """Name of the label that `text` (name, index or `label-<index>`) means."""

    @abc.abstractmethod
    def announce_inherited(self, prop: Property) -> None:
        """Tell the qubes that inherit this value that it may have changed."""

    def parse(self, prop: Property, untrusted_text: str) -> Value:
        """Coarse check by type. Raises BadValue, BadPropertyValue, LabelNotFound."""
        if prop.type == "bool":
            return parse_bool(untrusted_text)
        if prop.type == "int":
            return parse_int(untrusted_text)
        if prop.type == "vm":
            return self._parse_qube(prop, untrusted_text)
        if len(untrusted_text) > MAX_TEXT or not _PRINTABLE.issuperset(untrusted_text):
            raise BadValue(f"property {prop.name} takes printable ASCII text only")
        if prop.type == "label":
            label = self.resolve_label(untrusted_text)
            if label is None:
                raise LabelNotFound(f"no label {untrusted_text[:60]!r}")
            return label
        return untrusted_text

    def _parse_qube(self, prop: Property, untrusted_text: str) -> str | None:
        if not untrusted_text:
            return None
        if untrusted_text == "dom0":
            return "dom0"
        try:
            name = QubeName(untrusted_text)
        except InvalidValue as error:
            raise BadValue(f"property {prop.name}: {error}") from error
        if not self.resolve_qube(name):
            raise BadPropertyValue(f"property {prop.name}: there is no qube {name} on this machine")
        return str(name)

    def set_text(self, name: str, untrusted_text: str) -> None:
        """Set from the text of an Admin API call. Raises NoSuchProperty and what `set` raises."""
        prop = self.property(name)
        self.set(name, self.parse(prop, untrusted_text))

    def set(self, name: str, value: Value) -> None:
        """Check, announce, store, keep other things in step. Raises BadPropertyValue and what the property's rule raises."""
        prop = self.property(name)
        if prop.read_only or (prop.write_once and name in self.values):
            raise BadPropertyValue(f"property {name} of {self.subject or 'the system'} can't be changed")
        if prop.rule is not None:
            value = prop.rule(self, value)
        pairs = self._change(name, value)
        old = pairs.get("oldvalue")
        self.journal.emit(self.subject, f"property-pre-set:{name}", **pairs)
        self.store_value(name, value)
        if prop.effect is not None:
            prop.effect(self, value, old)
        if value != old:
            self.announce_inherited(prop)
        self.journal.emit(self.subject, f"property-set:{name}", **pairs)

    def store_value(self, name: str, value: Value) -> None:
        """Store without check or event: for what is being made."""
        self.journal.put(self.table, self.owner, self.values, name, value)

    def reset(self, name: str) -> None:
        """Back to the default. Raises NoSuchProperty, BadValue where a value must be kept, what the rule raises."""
        prop = self.property(name)
        if prop.keep or prop.write_once:
            raise BadValue(f"property {name} can't be reset: {prop.keep or 'it is set once and for all'}")
        if prop.reset_rule and prop.rule is not None:
            prop.rule(self, self.default(name))
        pairs: dict[str, Any] = {"name": name}
        old = None
        try:
            pairs["oldvalue"] = old = self.get(name)
        except Unset:
            pass
        self.journal.emit(self.subject, f"property-pre-reset:{name}", **pairs)
        self.reset_value(prop, old)
        self.journal.emit(self.subject, f"property-reset:{name}", **pairs)
        self.journal.emit(self.subject, f"property-del:{name}", **pairs)
        if self._default_or_none(name) != old:
            self.announce_inherited(prop)

    def reset_value(self, prop: Property, old: Value) -> None:
        """The middle of a reset. The netvm announces the change to its default as a set, too (recorded order)."""
        name = prop.name
        pairs = {"name": name} if old is None and prop.default is NO_DEFAULT else {"name": name, "oldvalue": old}
        new = self._default_or_none(name)
        as_set = prop.name == "netvm" and new != old
        change = {"name": name, "newvalue": new, "oldvalue": old}
        if as_set:
            self.journal.emit(self.subject, f"property-pre-set:{name}", **change)
        self.journal.emit(self.subject, f"property-pre-del:{name}", **pairs)
        if name in self.values:
            self.journal.drop(self.table, self.owner, self.values, name)
            if prop.effect is not None:
                prop.effect(self, new, old)
        if as_set:
            self.journal.emit(self.subject, f"property-set:{name}", **change)

    def _default_or_none(self, name: str) -> Any:
        try:
            return self.default(name)
        except Unset:
            return None

    def _change(self, name: str, value: Value) -> dict[str, Any]:
        pairs: dict[str, Any] = {"name": name, "newvalue": value}
        try:
            pairs["oldvalue"] = self.get(name)
        except Unset:
            pass
        return pairs

    def announce(self, name: str, **pairs: object) -> None:
        """Tell that a computed or default value may have changed."""
        if name in self.properties:
            self.journal.emit(self.subject, f"property-reset:{name}", name=name, **pairs)
