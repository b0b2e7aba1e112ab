"""What one call changes: how to undo it, what to write to the store, which events to send.

Every change of the model goes through here, so that a failed call leaves the model as it was, and a good one is written
to the store in one transaction before anybody hears of it.
"""
from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

V = TypeVar("V")


class Event(NamedTuple):
    """`subject`: a qube's name, or empty for the system. Pairs are text already."""

    subject: str
    name: str
    pairs: tuple[tuple[str, str], ...] = ()


class Row(NamedTuple):
    """A change of one row in the store: `table` and its key (`owner` is a qid, 0 for dom0, -1 for the system)."""

    table: str
    owner: int
    key: str
    value: Any
    deleted: bool = False


class Journal:
    """The changes since the last `clear`. Not nested: one call, one transaction."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.events: list[Event] = []
        self._undo: list[Callable[[], None]] = []

    def put(self, table: str, owner: int, mapping: dict[str, V], key: str, value: V) -> None:
        """Set an entry of the model; an order of insertion is kept."""
        if key in mapping:
            old = mapping[key]
            self._undo.append(lambda: mapping.__setitem__(key, old))
        else:
            self._undo.append(lambda: mapping.__delitem__(key))
        mapping[key] = value
        self.rows.append(Row(table, owner, key, value))

    def drop(self, table: str, owner: int, mapping: dict[str, V], key: str) -> None:
        """Remove an entry of the model. Raises KeyError when there is none."""
        before = dict(mapping)
        del mapping[key]

        def restore() -> None:
            mapping.clear()
            mapping.update(before)

        self._undo.append(restore)
        self.rows.append(Row(table, owner, key, None, deleted=True))

    def assign(self, owner: object, attribute: str, value: Any, row: Row) -> None:
        """Set an attribute of a model object."""
        old = getattr(owner, attribute)
        self._undo.append(lambda: setattr(owner, attribute, old))
        setattr(owner, attribute, value)
        self.rows.append(row)

    def emit(self, subject: str, name: str, /, **pairs: object) -> None:
        self.events.append(Event(subject, name, tuple((key, str(value)) for key, value in pairs.items())))

    def clear(self) -> None:
        self.rows, self.events, self._undo = [], [], []

    def undo(self) -> None:
        """Put the model back as it was at the last `clear`."""
        for step in reversed(self._undo):
            step()
        self.clear()
