"""The agent's main program: takes the host's orders (wire/agent.py) and serves the channels once this guest is somebody.

It is single-threaded and nothing in it waits, so between two callbacks its state is whole: a snapshot is taken while it
listens to its port, with nothing of a user in it.
"""
from __future__ import annotations

import asyncio
import os
import sys

from cloison.guest import background, identity, volumes
from cloison.guest.qrexec import ControlChannel
from cloison.guest.qubesdb import QubesDb
from cloison.runtime.port import Handler, Port
from cloison.wire import agent as orders
from cloison.wire import qdb, qrexec
from cloison.wire.mux import GUEST, Address

PORT = "/dev/virtio-ports/org.cloison.mux"
SYSTEMCTL = "/usr/bin/systemctl"
SETTLE_SECONDS = 1.0


class Agent:
    """One guest's agent. Before `become` it is nobody and opens no service to anyone."""

    def __init__(self, fd: int) -> None:
        self._port = Port(fd, GUEST, on_control=self._order, on_open=self._opened, on_end=sys.exit)
        self._control = ControlChannel(self._port)
        self._qubesdb = QubesDb(self._port)
        self._orders = {
            "become": self._become, "time": self._time, "seal": self._seal, "shutdown": self._shutdown, "ping": self._ping,
        }

    def _order(self, message: bytes) -> None:
        do, fields = orders.parse_order(message)
        self._orders[do](fields)

    def _become(self, fields: dict[str, object]) -> None:
        who = orders.identity(fields)
        try:
            identity.become(who)
        except (OSError, ValueError) as error:
            self._port.control(orders.report("failed", str(error)))
            return
        self._control.xid = who.xid
        self._qubesdb.fill(who.qubesdb)
        self._port.control(orders.report("running"))
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settle)

    def _time(self, fields: dict[str, object]) -> None:
        identity.set_clock(int(str(fields["time"])))

    def _seal(self, _: dict[str, object]) -> None:
        identity.rehearse()
        self._port.control(orders.report("sealed"))

    def _shutdown(self, _: dict[str, object]) -> None:
        self._port.control(orders.report("halting"))
        background.spawn([SYSTEMCTL, "poweroff", "--no-wall"])

    def _ping(self, _: dict[str, object]) -> None:
        self._port.control(orders.report("pong"))

    def _settle(self) -> None:
        """What a start need not wait for."""
        self._qubesdb.serve()
        try:
            volumes.enable_swap()
        except OSError as error:
            print(f"no swap: {error}", file=sys.stderr)
        volumes.run_rc_local()
        # The journal was opened under the id that this guest had as nobody; journalctl looks for its own.
        background.spawn([SYSTEMCTL, "--no-block", "restart", "systemd-journald"])

    def _opened(self, channel: int, address: Address) -> Handler | None:
        """A channel that the host opens, as vchan client."""
        if address.port == qrexec.CONTROL_PORT:
            return self._control.opened(channel)
        if address.port == qdb.PORT:
            return self._qubesdb.opened(channel)
        return None


async def main() -> None:
    fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    Agent(fd)
    await asyncio.get_running_loop().create_future()
