"""Who listens to events, and what each may hear. Nothing is queued here: a listener that can't take an event is dropped by
its connection, never waited for.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cloison.admin.qubesd import Send
from cloison.model.journal import Event

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Listener:
    """`subject`: only this qube's events; None: everything. `allows(event)` filters for a source that is not dom0."""

    subject: str | None
    send: Send
    allows: Callable[[Event], bool]


class EventBus:
    def __init__(self) -> None:
        self.listeners: set[Listener] = set()

    def add(self, listener: Listener) -> Callable[[], None]:
        """Returns what ends it."""
        self.listeners.add(listener)
        return lambda: self.listeners.discard(listener)

    def publish(self, events: Iterable[Event]) -> None:
        for event in events if self.listeners else ():
            for listener in tuple(self.listeners):
                if (listener.subject is None or listener.subject == event.subject) and listener.allows(event):
                    self._send(listener, event)

    def _send(self, listener: Listener, event: Event) -> None:
        try:
            listener.send(event.subject, event.name, event.pairs)
        except ConnectionError as error:
            log.info("a listener to events is gone: %s", error)
            self.listeners.discard(listener)
