"""QEMU's monitor, as far as a guest can reach it: what nobody waits for is thrown away unread, and what waits has a bound.

A guest causes events at will: a write to an I/O port of the CPU hot-plug device is one (ACPI_DEVICE_OST), and QEMU keeps in its
own memory what is not read from it. So such lines are read fast, without being parsed. `qemu.qmp` itself would queue every event
for a listener that it always has, and keep all that a listener ever got.

A guest that owns its QEMU may send anything: a line is at most MAX_LINE bytes, a listener holds at most MAX_EVENTS, and more than
that is a flood, which ends the connection. `on_flood` hears of it first.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Final

from qemu.qmp import EventListener, QMPClient
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

MAX_LINE: Final = 256 << 10              # bytes of one answer: a console's last words are 88 kB; the reader holds twice that
MAX_EVENTS: Final = 64                   # that wait for one listener
NOISE: Final = (b'"event": "ACPI_DEVICE_OST"', b'"event": "DEVICE_UNPLUG_GUEST_ERROR"', b'"event": "RTC_CHANGE"')

# What goes wrong is raised where it is waited for. A line of the log for each wrong line of a QEMU's would be a guest's to write.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL + 1)


class Listener(EventListener):
    """Events of one name, each until it is taken."""

    async def put(self, event: Message) -> None:
        """Raises ProtocolError when too many wait."""
        if not self.accept(event):
            return
        if self._queue.qsize() >= MAX_EVENTS:
            raise ProtocolError(f"more than {MAX_EVENTS} events of one kind")
        self._queue.put_nowait(event)
        await asyncio.sleep(0)           # who waits for it comes first: a reader with a full buffer lets nobody else run


class Monitor(QMPClient):
    """A QMP client. `on_flood` is called, before the connection ends, when more comes than anybody can have asked for."""

    def __init__(self, on_flood: Callable[[], None] = lambda: None) -> None:
        super().__init__("qube", MAX_LINE)
        self._on_flood = on_flood
        self._listeners.clear()          # the one for everything, which nobody reads

    @contextlib.contextmanager
    def waiting_for(self, name: str) -> Iterator[Listener]:
        """The events of that name, while inside."""
        listener = Listener(name)
        with self.listen(listener):
            yield listener

    async def _do_recv(self) -> Message:
        """The next message that is not noise."""
        try:
            line = await self._readline()
            while any(noise in line for noise in NOISE):
                line = await self._readline()
            return Message(line, eager=True)
        except (ValueError, RecursionError, ProtocolError) as error:     # ValueError: a line over the limit
            self._on_flood()
            raise ProtocolError(f"QEMU's monitor sends what is none of it: {error}") from error

    async def _event_dispatch(self, msg: Message) -> None:
        try:
            await super()._event_dispatch(msg)
        except (ProtocolError, TypeError) as error:                      # TypeError: a name that is none
            self._on_flood()
            raise ProtocolError(f"QEMU's monitor sends events without end, or none: {error}") from error

    # The library would make a text of each message here, for a log that is off.
    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg
