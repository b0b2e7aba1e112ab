"""The agent's main program: takes the host's orders (wire/agent.py) and serves the channels once this guest is somebody.

It is single-threaded and nothing in it waits, so between two callbacks its state is whole: a snapshot is taken while it
listens to its port, with nothing of a user in it.
"""
from __future__ import annotations

import asyncio
import os
import select
import sys
from collections.abc import Callable

from cloison.guest import background, devices, identity, placement, private_volume, qubesdb, refresh, standby, volumes
from cloison.guest.qubesdb import QubesDb
from cloison.guest.rpc import wait_for_session
from cloison.qrexec import inheritance
from cloison.qrexec.inheritance import Session
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.qube import sessions, trigger
from cloison.qrexec.qube.agent import ControlChannel
from cloison.qrexec.qube.sessions import Sessions
from cloison.runtime.port import READ, Handler, Port
from cloison.wire import agent as orders
from cloison.wire import qdb, qrexec, rejoin
from cloison.wire.agent import Identity
from cloison.wire.mux import GUEST, Address

PORT = "/dev/virtio-ports/org.cloison.mux"
SYSTEMCTL = "/usr/bin/systemctl"
BOOT = ("/usr/bin/timeout", "120", SYSTEMCTL, "is-system-running", "--wait", "--quiet")     # ends with it, or after so many s
SETTLE_SECONDS = 1.0
ANNOUNCE_AGAIN = 0.5                     # s: the host may have taken the last one for bytes of the former agent's
STANDBY = "cloison-standby.service"
BEEN_HERE = "/run/cloison-agent"         # made by the first agent of a boot
QUIET_SECONDS = 5.0          # until programs that have nothing more to do have ended: udev's workers after 3


class System:
    """What the orders do to the guest that the agent runs in. A test gives another one: it has a host to lose."""

    qubesdb_socket = qubesdb.SOCKET
    trigger_socket = trigger.SOCKET
    _standby = False                         # somebody stands by, or has been asked to

    def become(self, who: Identity) -> list[str]:
        """What is not as it should be. Raises OSError or ValueError."""
        return identity.become(who)

    def set_clock(self, now: int) -> None:
        identity.set_clock(now)

    def sessions(self) -> Sessions | None:
        """Users' sessions, None where there is no such thing."""
        return Sessions(wait_for_session.SESSIONS) if sessions.available() else None

    def when_booted(self, then: Callable[[], None]) -> None:
        """Call `then` when the boot has nothing left to do, and the agent's stand-in nothing left to load. A boot that does not
        end is given up.
        """
        self._standby = True
        try:
            background.spawn([SYSTEMCTL, "start", STANDBY], lambda: self._wait_for_boot(then))
        except OSError as error:
            print(f"nobody stands by for the agent: {error}", file=sys.stderr)
            self._wait_for_boot(then)

    def _wait_for_boot(self, then: Callable[[], None]) -> None:
        try:
            background.spawn(BOOT, then)
        except OSError as error:
            print(f"the boot's end is not waited for: {error}", file=sys.stderr)
            then()

    def when_quiet(self, then: Callable[[], None]) -> None:
        """Call `then` when what the boot has left over is gone. No event tells that: it ends by timers of its own."""
        asyncio.get_running_loop().call_later(QUIET_SECONDS, then)

    def rehearse(self) -> None:
        identity.rehearse()

    def power_off(self) -> None:
        background.spawn([SYSTEMCTL, "poweroff", "--no-wall"])

    def settle(self, who: Identity) -> None:
        """What a start need not wait for."""
        persistence = who.qubesdb.get("/qubes-vm-persistence", "")
        try:
            if volumes.can_wait(persistence, blank=who.private_blank):
                for problem in private_volume.mount(persistence, who.private_size, who.qubesdb):
                    print(problem, file=sys.stderr)
            volumes.enable_swap()
        except OSError as error:
            print(f"no /rw or no swap: {error}", file=sys.stderr)
        if not self._standby:                # a guest that has booted, and was not restored
            self._standby = True
            background.spawn([SYSTEMCTL, "--no-block", "start", STANDBY])
        identity.link_journal(who.machine_id)
        if who.qubesdb.get("/qubes-service/user-manager") == "1":
            background.spawn([SYSTEMCTL, "--no-block", "start", f"user@{identity.DEFAULT_UID}.service"])
        if who.qubesdb.get("/qubes-service/fresh-daemons") == "1":
            refresh.Refresh().begin()
        if not private_volume.is_custom(who.qubesdb):
            volumes.run_rc_local()

    def follow_devices(self, publish: devices.Publish) -> None:
        """Tell what other qubes may be given of this one, now and from now on."""
        try:
            devices.Devices(publish).follow()
        except OSError as error:
            print(f"no devices are told of: {error}", file=sys.stderr)


class Agent:
    """One guest's agent. Before `become` it is nobody and opens no service to anyone."""

    def __init__(self, fd: int, system: System, on_end: Callable[[str], None]) -> None:
        self._system, self._on_end = system, on_end
        self._port = Port(fd, GUEST, on_control=self._order, on_open=self._opened, on_end=self._ended)
        self._sessions = system.sessions()
        self._control = ControlChannel(self._port, self._lost, sessions=self._sessions)
        self._qubesdb = QubesDb(self._port)
        self._unopened: list[str] = []                   # users whose sessions the snapshot still lacks
        self._orders = {
            "become": self._become, "rejoin": self._rejoin, "time": self._time, "seal": self._seal,
            "shutdown": self._shutdown, "ping": self._ping,
        }

    def _order(self, message: bytes) -> None:
        do, fields = orders.parse_order(message)
        self._orders[do](fields)

    def _become(self, fields: dict[str, object]) -> None:
        who = orders.identity(fields)
        try:
            problems = self._system.become(who)
        except (OSError, ValueError) as error:
            self._port.control(orders.report("failed", str(error)))
            return
        self._control.xid = who.xid
        self._qubesdb.fill(who.qubesdb)
        self._serve_programs()
        for problem in problems:
            print(problem, file=sys.stderr)
        self._port.control(orders.report("running", "; ".join(problems)))
        asyncio.get_running_loop().call_later(SETTLE_SECONDS, self._settle, who)

    def _rejoin(self, fields: dict[str, object]) -> None:
        """An agent before this one has become that qube; programs it started still run."""
        who = orders.identity(fields)
        self._control.xid = who.xid
        self._qubesdb.fill(who.qubesdb)
        self._serve_programs()
        self._port.control(orders.report("running"))
        self._system.follow_devices(self._qubesdb.change)

    def _settle(self, who: Identity) -> None:
        self._system.settle(who)
        self._system.follow_devices(self._qubesdb.change)

    def _time(self, fields: dict[str, object]) -> None:
        self._system.set_clock(int(str(fields["time"])))

    def _seal(self, _: dict[str, object]) -> None:
        """What the boot still does would be done by every clone again."""
        self._system.when_booted(lambda: self._open_sessions(lambda: self._system.when_quiet(self._sealed)))

    def _open_sessions(self, then: Callable[[], None]) -> None:
        """Those that nearly every call is made in, for the snapshot to have them. Then call `then`."""
        self._unopened = list(identity.USERS) if self._sessions is not None else []
        self._open_next(then)

    def _open_next(self, then: Callable[[], None]) -> None:
        def opened(session: Session | CannotStart) -> None:
            if isinstance(session, CannotStart):
                print(session, file=sys.stderr)      # a call will try again
            self._open_next(then)

        while self._unopened and self._sessions is not None:
            try:
                self._sessions.enter(self._unopened.pop(), opened)
                return
            except CannotStart as error:
                print(error, file=sys.stderr)
        then()

    def _sealed(self) -> None:
        self._system.rehearse()
        self._serve_programs()
        self._port.control(orders.report("sealed"))

    def _shutdown(self, _: dict[str, object]) -> None:
        self._port.control(orders.report("halting"))
        self._system.power_off()

    def _ping(self, _: dict[str, object]) -> None:
        self._port.control(orders.report("pong"))

    def _serve_programs(self) -> None:
        """Before any program of the user may run: done once, for a warm image before it is saved."""
        self._control.triggers.serve(self._system.trigger_socket)
        self._qubesdb.serve(self._system.qubesdb_socket)

    def _ended(self, reason: str) -> None:
        self._control.triggers.close()
        self._qubesdb.close()
        self._on_end(reason)

    def _lost(self, reason: str) -> None:
        """The daemon hung up, which ends nothing here; or it broke the protocol, and then nothing can be trusted any more."""
        if reason:
            sys.exit(reason)

    def _opened(self, channel: int, address: Address) -> Handler | None:
        """A channel that the host opens, as vchan client."""
        if address.port == qrexec.CONTROL_PORT:
            return self._control.opened(channel)
        if address.port == qdb.PORT:
            return self._qubesdb.opened(channel)
        return None


def _find_host(fd: int) -> None:
    """After an agent that ended in the middle of anything: skip what was meant for it (wire/rejoin.py)."""
    os.set_blocking(fd, True)
    side, last = rejoin.AgentSide(os.urandom(rejoin.NONCE)), b""
    while not last:
        os.write(fd, side.announcement)
        while not last and select.select([fd], [], [], ANNOUNCE_AGAIN)[0]:
            last = side.feed(os.read(fd, READ))
    os.write(fd, last)
    os.set_blocking(fd, False)


async def main() -> None:
    standby.take_turn()
    inheritance.shelter()
    placement.share_processor_with(PORT)
    fd = os.open(PORT, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    if os.path.exists(BEEN_HERE):
        _find_host(fd)
    os.close(os.open(BEEN_HERE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    Agent(fd, System(), on_end=sys.exit)
    await asyncio.get_running_loop().create_future()
