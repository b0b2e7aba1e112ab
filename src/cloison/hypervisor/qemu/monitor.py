"""QEMU's monitor, as far as a guest can reach it: what nobody waits for is thrown away unread, and what waits has a bound.

A guest causes events at will: a write to an I/O port of the CPU hot-plug device is one (ACPI_DEVICE_OST), and QEMU keeps in its
own memory what is not read from it. So such lines are read fast, without being parsed. `qemu.qmp` itself would queue every event
for a listener that it always has, and keep all that a listener ever got.

A guest that owns its QEMU may send anything: a line is at most MAX_LINE bytes, a listener holds at most MAX_EVENTS, and lines come
no faster than BURST and RATE let them: each takes this process's time, read or thrown away. More than that is a flood, which ends
the connection; `on_flood` hears of it first. It may also hang up, or never answer: `on_end` hears of the one, and who waits for an
answer has a limit for the other.
"""
from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import Final

from qemu.qmp import EventListener, QMPClient
from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from cloison.runtime.token_bucket import TokenBucket

MAX_LINE: Final = 256 << 10              # bytes of one answer: a console's last words are 88 kB; the reader holds twice that
MAX_EVENTS: Final = 64                   # that wait for one listener
# Lines at once, then a second; a long one counts for each KiB of it. A disk without space makes one of each request under way, of
# which it has 256, each time that it is tried again; nothing else that is honest comes near. At RATE they take less than a
# hundredth of a processor (4 us each that is thrown away, 14 one that is parsed).
BURST: Final = 10_000
RATE: Final = 200.0
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


def _nothing() -> None:
    """Nobody listens."""


class Monitor(QMPClient):
    """A QMP client. `on_flood` is called, before the connection ends, when more comes than anybody can have asked for; `on_end`
    when the other end has hung up.
    """

    def __init__(self, on_flood: Callable[[], None] = _nothing, on_end: Callable[[], None] = _nothing, *,
                 clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__("qube", MAX_LINE)
        self._on_flood, self._on_end, self._clock = on_flood, on_end, clock
        self._allowed = TokenBucket(BURST, RATE)
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
            line = await self._next()
            while any(noise in line for noise in NOISE):
                line = await self._next()
            return Message(line, eager=True)
        except (ValueError, RecursionError, ProtocolError) as error:     # ValueError: a line over the limit
            self._on_flood()
            raise ProtocolError(f"QEMU's monitor sends what is none of it: {error}") from error
        except (EOFError, OSError):
            self._on_end()
            raise

    async def _next(self) -> bytes:
        """A line, if it may come now. Raises ProtocolError, and what `_readline` raises."""
        line = await self._readline()
        now = self._clock()
        if self._allowed.wait(now) > 0:
            raise ProtocolError("too many lines")
        self._allowed.spend(now, 1 + (len(line) >> 10))
        return line

    def abort(self) -> None:
        """Nothing more is sent or read; whoever waits for something hears so. Unlike `disconnect` it waits for nobody."""
        if self._writer is not None:
            self._writer.transport.abort()

    async def _on_message(self, msg: Message) -> None:
        """What ends the reader here ends the connection: unless it counts as a flood, QEMU would live on without a monitor."""
        try:
            await super()._on_message(msg)
        except (ProtocolError, TypeError) as error:                      # TypeError: a name or an id that is none
            self._on_flood()
            raise ProtocolError(f"QEMU's monitor sends events without end, or what is no answer: {error}") from error

    # The library would make a text of each message here, for a log that is off.
    def _cb_inbound(self, msg: Message) -> Message:
        return msg

    def _cb_outbound(self, msg: Message) -> Message:
        return msg
