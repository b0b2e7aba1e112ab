"""The table of bounds, walked: each row is filled to its bound and beyond, and what that costs this process is measured.

A driver fills one row as a hostile guest would, asserts that one more is refused or ends somebody, and tells the most bytes that
were taken meanwhile. Where a row counts things that are alike, some of them are made and the rest reckoned.
"""
from __future__ import annotations

import asyncio
import contextlib
import socket
import tracemalloc
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp.error import ProtocolError
from tests.hypervisor import test_monitor
from tests.hypervisor.test_monitor import Clock, Qemu

from cloison.errors import MachineError, PeerError
from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.fake import FakeMachine
from cloison.hypervisor.qemu import monitor
from cloison.hypervisor.qemu.hotplug import PORTS, HotPlug
from cloison.hypervisor.qemu.monitor import MAX_EVENTS, MAX_LINE, Monitor
from cloison.qdb import server, tree
from cloison.qrexec.call_log import CallLog
from cloison.qrexec.caller import Caller, Sink
from cloison.qrexec.host import local_socket, outgoing
from cloison.qrexec.host.budget import Budget
from cloison.qrexec.host.daemon import MAX_ANSWERS, Daemon, Served
from cloison.qrexec.host.local_socket import Client, LocalSocket
from cloison.qrexec.host.outgoing import Host, Outgoing
from cloison.runtime.held import Held
from cloison.runtime.port import READ, Channels, Handler
from cloison.runtime.relay import Relay
from cloison.runtime.say import Pace
from cloison.warden import bounds
from cloison.warden.console import KEPT, Console
from cloison.warden.control import MAX_PEERS, MAX_UNREAD, ControlServer
from cloison.warden.rejoin import Turns
from cloison.wire import mux, qdb, qrexec
from cloison.wire.mux import Address, Mux

SOME = 64                                # of what is alike


class Taken:
    peak = 0


@contextlib.contextmanager
def measured() -> Iterator[Taken]:
    """The most that Python had at once inside, beyond what it had before."""
    taken = Taken()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    try:
        yield taken
        taken.peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def in_loop(work: Callable[[], Coroutine[Any, Any, int]]) -> int:
    async def limited() -> int:
        async with asyncio.timeout(30):
            return await work()

    return asyncio.run(limited())


class Stuck(Channels):
    """Channels whose other end reads nothing."""

    def __init__(self, held: Held | None = None) -> None:
        self.held = held or Held(None)
        self.opened = 0

    def open(self, address: Address, handler: Handler) -> int:
        self.opened += 1
        return self.opened

    def listen(self, address: Address, accept: Callable[[int], Handler]) -> None: ...
    def unlisten(self, address: Address) -> None: ...
    def send(self, channel: int, data: bytes | memoryview) -> int: return 0
    def consumed(self, channel: int, count: int) -> None: ...
    def close(self, channel: int) -> None: ...


def hello() -> bytes:
    return qrexec.hello(qrexec.VERSION)


# -- drivers, by the row's name ----------------------------------------------------------------------------------------------


def held() -> int:
    async def work() -> int:
        channels, ended = Stuck(Held(bounds.HELD)), []
        with measured() as taken:
            relays = [Relay(channels, number, None, lambda: ended.append(1)) for number in range(48)]
            piece = b"x" * 100
            for _ in range(mux.WINDOW // len(piece)):
                for relay in relays:
                    relay.data(piece)
        assert bounds.HELD * 0.9 < channels.held.total <= bounds.HELD and ended
        for relay in relays:
            relay.end()
        assert channels.held.total == 0
        return taken.peak

    return in_loop(work)


def output() -> int:
    with measured() as taken:
        end = Mux(mux.HOST)
        for _ in range(2):                   # what is being written, and what waits behind it
            written = end.take_output()
            while len(end._output) <= mux.MAX_QUEUED:
                end.control(b"x")
        assert len(written) > mux.MAX_QUEUED
    with pytest.raises(PeerError, match="not read"):
        end.receive(b"")
    return taken.peak


def one_read() -> int:
    guest, host = Mux(mux.GUEST), Mux(mux.HOST)
    channel = host.open(Address(7, 0, 600))
    guest.receive(host.take_output())
    while len(guest._output) < READ:
        guest.send(channel, b"x")
    data = bytes(guest.take_output())[:READ]
    with measured() as taken:
        events = host.receive(data)
    assert len(events) > READ // 10
    return taken.peak


def channels() -> int:
    async def work() -> int:
        host, guest = Mux(mux.HOST), Mux(mux.GUEST)
        with contextlib.ExitStack() as open_ones:
            with measured() as taken:
                for number in range(SOME):
                    ours, theirs = socket.socketpair()
                    open_ones.enter_context(theirs)
                    relay = Relay(Stuck(), host.open(Address(7, 0, number)), ours, lambda: None)
                    open_ones.callback(relay.end)
        host = Mux(mux.HOST)
        with pytest.raises(PeerError, match="too many"):
            for number in range(mux.MAX_CHANNELS + 1):
                guest.open(Address(7, 0, number))
                host.receive(guest.take_output())
        assert len(host._channels) == mux.MAX_CHANNELS
        return taken.peak * mux.MAX_CHANNELS // SOME

    return in_loop(work)


def closing() -> int:
    with measured() as taken:
        host = Mux(mux.HOST)
        for number in range(mux.MAX_CLOSING + 1):
            host.close(host.open(Address(7, 0, number)))
            host.take_output()
            if number < mux.MAX_CLOSING:
                host.receive(b"")
    with pytest.raises(PeerError, match="never closed"):
        host.receive(b"")
    return taken.peak


def unheard() -> int:
    host, guest = Mux(mux.HOST), Mux(mux.GUEST)
    channel = host.open(Address(7, 0, qrexec.CONTROL_PORT))
    guest.receive(host.take_output())
    assert guest.send(channel, bytes(mux.WINDOW + 1)) == mux.WINDOW, "an honest one sends no more than its credit"
    data = bytes(guest.take_output())
    with measured() as taken:
        decoder = qrexec.Decoder(qrexec.FROM_AGENT)
        for event in host.receive(data):
            assert isinstance(event, mux.Data)
            decoder.feed(event.untrusted)
    with pytest.raises(PeerError, match="without credit"):
        host.receive(mux.HEADER.pack(mux.DATA, 0, 1, channel) + b"x")
    return taken.peak


def a_daemon(violations: list[str], folder: str = "/") -> Daemon:
    daemon = Daemon(Stuck(), Served(7, "work", "0" * 8, "user"), folder, violations.append)
    daemon.connect()
    daemon.data(hello())
    return daemon


def answers() -> int:
    async def work() -> int:
        violations: list[str] = []
        with measured() as taken:
            daemon = a_daemon(violations)
            while not violations:
                daemon.refuse(b"SOCKET1")
        assert daemon._outbox is not None and len(daemon._outbox) <= MAX_ANSWERS + 100
        with pytest.raises(PeerError, match="no more requests"):
            daemon._request(None, qrexec.Exec(qrexec.EXEC_CMDLINE, 0, 0, "user:true"), None)      # type: ignore[arg-type]
        return taken.peak

    return in_loop(work)


async def asking(folder: Path, count: int, service: str) -> tuple[Outgoing, int, list[bytes]]:
    """So many calls that wait for the policy, and what the first SOME of them cost."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "policy"))
    listener.listen(count)
    refused: list[bytes] = []
    daemon = a_daemon([])
    calls = Outgoing(daemon, Host(str(folder / "policy"), None, "", CallLog(str(folder / "log"))), Budget(), at_once=0)
    daemon.refuse = refused.append                                                             # type: ignore[method-assign]
    with listener, measured() as taken:
        for number in range(count):
            calls._asked(qrexec.Trigger("", "other", f"{number}".encode(), f"{service}{number:04}"))
        for _ in range(20):
            await asyncio.sleep(0)
    return calls, taken.peak, refused


def calls(folder: Path) -> int:
    async def work() -> int:
        under_way, taken, refused = await asking(folder, SOME, "test.Service+")
        assert not refused
        for number in range(outgoing.MAX_PENDING + 1):
            under_way._asked(qrexec.Trigger("", "other", f"more {number}".encode(), "s"))
        assert len(under_way._tasks) <= outgoing.MAX_CALLS and refused
        await under_way.close()
        return taken * outgoing.MAX_CALLS // SOME

    return in_loop(work)


def words(folder: Path) -> int:
    async def work() -> int:
        size = 64_000
        under_way, taken, refused = await asking(folder, outgoing.MAX_WORDS // size + 1, "s+" + "x" * (size - 6))
        assert refused and under_way._words <= outgoing.MAX_WORDS
        await under_way.close()
        await asyncio.sleep(0)
        assert under_way._words == 0
        return taken

    return in_loop(work)


def clients(folder: Path) -> int:
    async def work() -> int:
        def never(_client: Client, _message: qrexec.Message, _stream: socket.socket | None) -> bytes:
            return b""

        local = LocalSocket(str(folder), ("7",), never)
        pairs = [socket.socketpair() for _ in range(SOME)]
        with measured() as taken:
            for ours, _ in pairs:
                local._accept(ours)
        local._clients |= set(range(local_socket.MAX_CLIENTS))                                 # type: ignore[arg-type]
        one, other = socket.socketpair()
        local._accept(one)
        assert one.fileno() < 0, "one too many is hung up on"
        other.close()
        for client in [each for each in local._clients if isinstance(each, Client)]:
            client.close()
        for _, theirs in pairs:
            theirs.close()
        return taken.peak * local_socket.MAX_CLIENTS // SOME

    return in_loop(work)


def full_tree(value: bytes) -> tree.Tree:
    filled = tree.Tree(tree.HOST)
    number = 0
    while filled.store(f"/{number:062}", bytes(bytearray(value)), by_guest=True):
        number += 1
    return filled


def entries() -> int:
    with measured() as taken:
        filled = full_tree(b"x")
    assert len(filled.paths()) == tree.MAX_ENTRIES
    return taken.peak


def entry_bytes() -> int:
    few = b"x" * qdb.MAX_VALUE
    with measured() as taken:
        filled = full_tree(few)
    count = len(filled.paths())
    assert count < tree.MAX_ENTRIES and filled._charged_bytes + qdb.MAX_VALUE + 63 > tree.MAX_BYTES
    return taken.peak - count * 250          # of entries, which is another row's


def qubesdb_output() -> int:
    async def work() -> int:
        violations: list[str] = []
        database = server.Server(Stuck(), 7, lambda _path: None, violations.append)
        database.tree = full_tree(b"x" * 190)
        database.connect()
        with measured() as taken:
            while not violations:
                database.write({"/x": "y" * 50})
                if database._outbox is not None and len(database._outbox) == 0:
                    database.data(qdb.encode(qdb.MULTIREAD))
        return taken.peak

    return in_loop(work)


def monitor_line() -> int:
    peaks = []

    async def play(monitor: Monitor, qemu: Qemu) -> None:
        with measured() as taken:
            executing = asyncio.create_task(monitor.execute("query-status"))
            await qemu.heard()
            with contextlib.suppress(OSError):
                await qemu.send(b"x" * (4 * MAX_LINE))
            await asyncio.wait([executing])
            assert executing.exception() is not None
        peaks.append(taken.peak)

    assert test_monitor.played(play) == 1
    return peaks[0] - 4 * MAX_LINE           # what this end sends


def monitor_events() -> int:
    peaks = []

    async def play(monitor: Monitor, qemu: Qemu) -> None:
        with monitor.waiting_for("MIGRATION"), measured() as taken:
            await qemu.say(*[test_monitor.event("MIGRATION", status="active", more="x" * 60)] * MAX_EVENTS)
            executing = asyncio.create_task(monitor.execute("query-status"))
            await qemu.answers_one()
            await executing
        peaks.append(taken.peak)

    assert test_monitor.played(play) == 0    # and one more ends it: test_monitor.py
    return 4 * (peaks[0] - 120_000)          # buffers of this end and of the reader's, which is another row's


def console() -> int:
    async def work() -> int:
        machine = FakeMachine(MachineSpec("u", 64, 1, "tcg", ()))
        stream = await machine.start()
        shown = Console(machine)
        await shown.open()
        with measured() as taken:
            for _ in range(100):
                shown._show(b"x" * 4096)
        assert len(shown._waiting) == KEPT
        shown.close()
        machine.kill()
        stream.close()
        return taken.peak

    return in_loop(work)


def events(folder: Path) -> int:
    async def work() -> int:
        control = ControlServer(str(folder / "w.sock"), lambda _order, _request: None, lambda: {})     # type: ignore[arg-type, return-value]
        ours, theirs = socket.socketpair()
        lost = asyncio.Event()
        await control.adopt(ours, lost.set)
        with theirs, measured() as taken:
            while not lost.is_set():
                control.event({"event": "qdb-change", "path": "/qubes-block-devices"})
                await asyncio.sleep(0)
        assert taken.peak > MAX_UNREAD // 2
        await control.close()
        return MAX_PEERS * taken.peak

    return in_loop(work)


def disks() -> int:
    async def work() -> int:
        async def execute(_command: str, _arguments: dict[str, Any]) -> object:
            return {}

        class NoMonitor:
            def send_fd_scm(self, _fd: int) -> None: ...

        plugs = HotPlug(NoMonitor(), execute)                                                  # type: ignore[arg-type]
        one, other = socket.socketpair()
        with one, other:
            for number in range(len(PORTS)):
                await plugs.plug(f"disk{number}", one, read_only=True)
            with pytest.raises(MachineError, match="no slot"):
                await plugs.plug("more", one, read_only=True)
            with measured() as taken:
                sinks = Sink(one.fileno(), own=True), Sink(one.fileno(), own=True)
                caller = Caller(other, one.fileno(), *sinks)
                caller._message(bytes(65536))
            for sink in sinks:
                sink.release()
        return len(PORTS) * taken.peak

    return in_loop(work)


DRIVERS: dict[str, Callable[..., int]] = {
    "bytes of calls that wait for their reader": held,
    "bytes on their way to the guest": output,
    "bytes of one read of the guest's": one_read,
    "channels": channels,
    "channels that the guest has yet to close": closing,
    "bytes of requests not heard yet": unheard,
    "bytes of requests and answers for the agent": answers,
    "calls of the guest's under way": calls,
    "characters of what they ask for": words,
    "callers of the guest's services": clients,
    "entries of QubesDB": entries,
    "bytes of QubesDB": entry_bytes,
    "bytes of QubesDB for the guest": qubesdb_output,
    "bytes of QEMU's monitor": monitor_line,
    "events of QEMU's that somebody waits for": monitor_events,
    "bytes of the console that wait": console,
    "bytes of events that qubesd has not read": events,
    "attached disks": disks,
}


@pytest.mark.parametrize("row", bounds.ROWS, ids=lambda row: row.what)
def test_filled_to_its_bound_and_beyond_a_row_costs_what_it_says(row: bounds.Row, tmp_path: Path) -> None:
    driver = DRIVERS[row.what]
    taken = driver(tmp_path) if driver.__code__.co_argcount else driver()
    assert row.bytes / 3 < taken <= row.bytes, f"{row.what}: {taken} bytes of {row.bytes}"


def test_all_of_them_together_leave_a_warden_below_its_ceiling() -> None:
    assert bounds.IDLE + sum(row.bytes for row in bounds.ROWS) <= bounds.CEILING
    assert bounds.DATA + (8 << 20) <= bounds.CEILING, "and the kernel holds it there, with the files it has mapped"
    assert {row.what for row in bounds.ROWS} == set(DRIVERS) and len(bounds.ROWS) == len(DRIVERS)


# -- rates: each driver tells how many are taken up at once, and how many more within so many seconds -------------------------


def monitor_lines(later: float) -> tuple[int, int]:
    """What more does to a monitor that reads: test_monitor.py."""
    class Lines(Monitor):
        async def _readline(self) -> bytes:
            return b"{}"

    async def read(end: Monitor, most: int) -> int:
        count = 0
        with contextlib.suppress(ProtocolError):
            while count < most:
                await end._next()
                count += 1
        return count

    clock = Clock()
    end = Lines(clock=clock)
    at_once = asyncio.run(read(end, 2 * monitor.BURST))
    clock.now += later
    return at_once, asyncio.run(read(end, 2 * monitor.BURST))


def agents(later: float) -> tuple[int, int]:
    turns, at_once = Turns(), 0
    while (wait := turns.next(0.0)) == 0:
        at_once += 1
    more = 0
    while wait <= later:                     # each is heard when its turn has come
        more += 1
        wait += turns.next(wait)
    return at_once, more


def records(later: float) -> tuple[int, int]:
    clock = Clock()
    pace = Pace(bounds.LOG_BURST, bounds.LOG_RATE, clock)
    at_once = sum(pace.allowed() is not None for _ in range(1000))
    clock.now += later
    return at_once, sum(pace.allowed() is not None for _ in range(1000))


RATE_DRIVERS: dict[str, Callable[[float], tuple[int, int]]] = {
    "lines of QEMU's monitor": monitor_lines,
    "agents, one after the other": agents,
    "records of the qube's log": records,
}


@pytest.mark.parametrize("rate", bounds.RATES, ids=lambda rate: rate.what)
def test_so_many_at_once_and_so_many_a_second_and_no_more(rate: bounds.Rate) -> None:
    later = rate.burst / rate.rate / 2       # half of the burst has come back by then
    at_once, more = RATE_DRIVERS[rate.what](later)
    assert abs(at_once - rate.burst) <= 1 and abs(more - later * rate.rate) <= 2


def test_every_rate_has_a_driver() -> None:
    assert {rate.what for rate in bounds.RATES} == set(RATE_DRIVERS)


def test_every_bound_in_the_wardens_code_is_in_the_table_or_said_not_to_be_a_guests() -> None:
    """A constant that is called MAX_… and is new in what a warden runs is somebody's to think about."""
    import importlib

    table = " ".join(row.where for row in bounds.ROWS)
    for module, others in NOT_A_GUESTS.items():
        found = {name for name in vars(importlib.import_module(f"cloison.{module}")) if name.startswith("MAX_")}
        own = {name for name in found if name not in table}
        assert own == others, f"{module}: in bounds.ROWS, or here with a reason"


# Lengths of one message or name, bounds that another row holds, and what only the host's own processes fill.
NOT_A_GUESTS = {
    "wire.mux": {"MAX_BODY", "MAX_NUMBER"},
    "qdb.tree": {"MAX_WATCHES"},                                     # the host's own two
    "qdb.server": set(),
    "runtime.port": set(), "runtime.relay": set(), "runtime.held": set(),
    "qrexec.host.daemon": set(),
    "qrexec.host.outgoing": {"MAX_ASKING"},                          # of those calls
    "qrexec.host.local_socket": {"MAX_FDS"},
    "hypervisor.qemu.monitor": set(), "warden.console": set(),
    "warden.control": {"MAX_PEERS"},                                 # qubesd's connections: in the row of MAX_UNREAD
}
