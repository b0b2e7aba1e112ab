"""The agent's main loop: one virtio port, the multiplexer on it, and who handles which channel.

Nothing here waits: every callback does what it can and returns. The agent is single-threaded, so between two callbacks its
state is whole; a snapshot is taken while it waits for the port, with nothing of a user in it.
"""
from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Protocol

from cloison.guest import identity, libc, volumes
from cloison.wire import agent as orders
from cloison.wire.mux import GUEST, Address, Closed, Control, Data, Event, Mux, Opened, Writable

PORT = "/dev/virtio-ports/org.cloison.mux"
READ = 65536


class Handler(Protocol):
    """One vchan's user."""

    def data(self, untrusted: bytes) -> None: ...
    def writable(self) -> None: ...
    def closed(self) -> None: ...


class Port:
    """The multiplexer on its port. Channels are known by id; each has a handler."""

    def __init__(self, fd: int, on_control: Callable[[bytes], None], on_open: Callable[[int, Address], Handler | None]) -> None:
        self._fd = fd
        self._mux = Mux(GUEST)
        self._handlers: dict[int, Handler] = {}
        self._on_control, self._on_open = on_control, on_open
        self._unwritten = memoryview(b"")
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)
        self._writing = False

    def open(self, address: Address, handler: Handler) -> int:
        channel = self._mux.open(address)
        self._handlers[channel] = handler
        return channel

    def send(self, channel: int, data: bytes | memoryview) -> int:
        """How much was taken; the rest after the handler's `writable`."""
        sent = self._mux.send(channel, data)
        self.flush()
        return sent

    def consumed(self, channel: int, count: int) -> None:
        self._mux.consumed(channel, count)
        self.flush()

    def close(self, channel: int) -> None:
        self._handlers.pop(channel, None)
        self._mux.close(channel)
        self.flush()

    def control(self, message: bytes) -> None:
        self._mux.control(message)
        self.flush()

    def flush(self) -> None:
        """Write what the port takes now; the rest when it is writable."""
        if self._writing:
            return
        while self._unwritten or self._mux.has_output:
            if not self._unwritten:
                self._unwritten = memoryview(self._mux.take_output())
            try:
                self._unwritten = self._unwritten[os.write(self._fd, self._unwritten):]
            except BlockingIOError:
                self._writing = True
                self._loop.add_writer(self._fd, self._port_writable)
                return
        for event in self._mux.drained():
            self._dispatch(event)

    def _port_writable(self) -> None:
        self._loop.remove_writer(self._fd)
        self._writing = False
        self.flush()

    def _readable(self) -> None:
        data = os.read(self._fd, READ)
        if not data:
            sys.exit("the host has closed the port")
        for event in self._mux.receive(data):
            self._dispatch(event)
        self.flush()

    def _dispatch(self, event: Event) -> None:
        if isinstance(event, Data):
            if handler := self._handlers.get(event.channel):
                handler.data(event.untrusted)
        elif isinstance(event, Writable):
            if handler := self._handlers.get(event.channel):
                handler.writable()
        elif isinstance(event, Control):
            self._on_control(event.untrusted)
        elif isinstance(event, Opened):
            opened = self._on_open(event.channel, event.address)
            if opened is None:
                self._mux.close(event.channel)
            else:
                self._handlers[event.channel] = opened
        elif isinstance(event, Closed):
            closed = self._handlers.pop(event.channel, None)
            self._mux.close(event.channel)
            if closed is not None:
                closed.closed()


class Agent:
    """Takes the host's orders (wire/agent.py), and starts the services once this guest is somebody."""

    def __init__(self, fd: int) -> None:
        from cloison.guest.qrexec import ControlChannel
        from cloison.guest.qubesdb import QubesDb
        self._port = Port(fd, self._order, self._opened)
        self._control = ControlChannel(self._port)
        self._qubesdb = QubesDb(self._port)

    def _order(self, message: bytes) -> None:
        do, fields = orders.parse_order(message)
        if do == "become":
            self._become(orders.Identity(**fields))  # type: ignore[arg-type]
        elif do == "seal":
            _forget()
            self._port.control(orders.report("sealed"))
        elif do == "shutdown":
            self._port.control(orders.report("halting"))
            _power_off()
        elif do == "ping":
            self._port.control(orders.report("pong"))

    def _become(self, who: orders.Identity) -> None:
        try:
            identity.become(who)
        except (OSError, ValueError) as error:
            self._port.control(orders.report("failed", str(error)))
            return
        self._control.xid = who.xid
        self._qubesdb.fill(who.qubesdb)
        self._port.control(orders.report("running"))
        asyncio.get_running_loop().call_later(1, _settle)

    def _opened(self, channel: int, address: Address) -> Handler | None:
        """A channel that the host opens to us, as vchan client."""
        if address.port == 512:
            return self._control.opened(channel)
        if address.port == 111:
            return self._qubesdb.opened(channel)
        return None


def _forget() -> None:
    """Before a snapshot: what is written is on the disk, and caches hold nothing that a start would not want."""
    libc.sync()


def _settle() -> None:
    """After the start, off its path."""
    try:
        volumes.enable_swap()
    except OSError as error:
        print(f"no swap: {error}", file=sys.stderr)


def _power_off() -> None:
    os.posix_spawn("/usr/bin/systemctl", ["systemctl", "poweroff", "--no-wall"], os.environ)


async def main() -> None:
    fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    Agent(fd)
    await asyncio.get_running_loop().create_future()
