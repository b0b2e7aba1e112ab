"""The agent's orders over a real port, with a guest that writes down what is done to it; and what the real guest does for them."""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import cast

import pytest
from tests.patience import PATIENCE
from tests.runtime.ports import News, Recorder, Side

from cloison.guest import agent as module
from cloison.guest import background, devices, identity, private_volume, refresh, volumes
from cloison.guest.agent import Agent, System
from cloison.qrexec.inheritance import NO_SESSION, Session
from cloison.qrexec.lookup import CannotStart
from cloison.qrexec.qube.sessions import Sessions
from cloison.wire import agent as orders
from cloison.wire import qdb, qrexec, rejoin
from cloison.wire.agent import Identity
from cloison.wire.mux import HOST, Address

WHO = Identity(xid=7, time=1, entropy="ab" * 64, machine_id="0123456789abcdef" * 2, boot_id="71e6d277-9c8e-4f47-8e33-a82e3bdae48b",
               qubesdb={"/name": "work", "/qubes-vm-persistence": "rw-only"}, private_size=1 << 31, private_blank=False)


class Users:
    """In the place of `Sessions`. Whose session is refused at once, and whose later."""

    def __init__(self, done: list[object]) -> None:
        self.done, self.on_lost = done, lambda _user: None
        self.no, self.later_no = "", ""

    def enter(self, name: str, then: Callable[[Session | CannotStart], None]) -> None:
        self.done.append(("session", name))
        if name == self.no:
            raise CannotStart(127, f"no {name}")
        then(CannotStart(127, f"no {name}") if name == self.later_no else NO_SESSION)


class Guest(System):
    """What happens to it is written down, in order, together with what the agent's sockets looked like then."""

    def __init__(self, folder: Path) -> None:
        self.qubesdb_socket, self.trigger_socket = str(folder / "qubesdb.sock"), str(folder / "qrexec-agent")
        self.done: list[object] = []
        self.problems: list[str] | OSError | ValueError = []
        self.users: Users | None = None
        self.news = News()

    def is_open(self) -> list[bool]:
        return [os.path.exists(path) for path in (self.qubesdb_socket, self.trigger_socket)]

    def become(self, who: Identity) -> list[str]:
        self.done.append(("become", who, self.is_open()))
        if isinstance(self.problems, Exception):
            raise self.problems
        return self.problems

    def set_clock(self, now: int) -> None:
        self.done.append(("clock", now))

    def sessions(self) -> Sessions | None:
        return cast(Sessions, self.users) if self.users else None

    def when_booted(self, then: Callable[[], None]) -> None:
        self.done.append("booted")
        then()

    def when_quiet(self, then: Callable[[], None]) -> None:
        self.done.append(("quiet", self.is_open()))
        then()

    def rehearse(self) -> None:
        self.done.append("rehearse")

    def power_off(self) -> None:
        self.done.append("off")

    def settle(self, who: Identity) -> None:
        self.done.append(("settle", who))

    def follow_devices(self, publish: devices.Publish) -> None:
        self.done.append("devices")
        publish({"/qubes-block-devices": ""})
        self.news.tell()


def talk(folder: Path, conversation: Callable[[Side, Agent, Guest], Awaitable[None]], users: str | None = None) -> Guest:
    """Both ends in one loop."""
    async def all_of_it() -> Guest:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        guest = Guest(folder)
        if users is not None:
            guest.users = Users(guest.done)
            guest.users.no, guest.users.later_no = users.split()
        ended = asyncio.Event()
        host = Side(ours, HOST)
        agent = Agent(theirs.fileno(), guest, lambda _reason: ended.set())
        assert guest.is_open() == [False, False]
        try:
            await conversation(host, agent, guest)
        finally:
            host.port.end("the test is over")
            ours.close()
            async with asyncio.timeout(PATIENCE):
                await ended.wait()
            theirs.close()
        assert guest.is_open() == [False, False]         # nobody is served any more
        return guest

    return asyncio.run(all_of_it())


async def ask(host: Side, message: bytes, answers: int = 1) -> list[bytes]:
    host.port.control(message)
    await host.until(lambda: len(host.controls) >= answers)
    return host.controls


def test_a_guest_becomes_the_qube_then_serves_then_settles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)

    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        guest.problems = ["no swap", "no /rw"]
        assert await ask(host, orders.become(WHO)) == [b"running no swap; no /rw"]
        assert guest.is_open() == [True, True]
        with socket.socket(socket.AF_UNIX) as program:
            program.setblocking(False)
            program.connect(guest.qubesdb_socket)
            program.send(qdb.encode(qdb.READ, "/name"))
            async with asyncio.timeout(PATIENCE):        # what it is was known before anybody could ask
                assert b"work" in await asyncio.get_running_loop().sock_recv(program, 4096)
        await guest.news.until(lambda: "devices" in guest.done)

    guest = talk(tmp_path, conversation)
    assert guest.done == [("become", WHO, [False, False]), ("settle", WHO), "devices"]


@pytest.mark.parametrize("fault", [OSError(1, "no entropy"), ValueError("no entropy")])
def test_a_guest_that_can_not_become_the_qube_serves_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: OSError | ValueError,
) -> None:
    monkeypatch.setattr(module, "SETTLE_SECONDS", 0.0)

    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        guest.problems = fault
        assert await ask(host, orders.become(WHO)) == [f"failed {fault}".encode()]
        assert await ask(host, orders.ping(), 2) == [f"failed {fault}".encode(), b"pong"]
        assert guest.is_open() == [False, False]

    assert [step[0] for step in talk(tmp_path, conversation).done if isinstance(step, tuple)] == ["become"]


def test_a_new_agent_serves_without_becoming_anybody_anew(tmp_path: Path) -> None:
    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        assert await ask(host, orders.rejoin(WHO)) == [b"running"]
        assert guest.is_open() == [True, True] and agent._control.xid == WHO.xid

    assert talk(tmp_path, conversation).done == ["devices"]


def test_the_time_and_the_end(tmp_path: Path) -> None:
    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        host.port.control(orders.clock(1_700_000_000_000_000_001))
        assert await ask(host, orders.shutdown()) == [b"halting"]

    assert talk(tmp_path, conversation).done == [("clock", 1_700_000_000_000_000_001), "off"]


@pytest.mark.parametrize("users", [None, "- -", "root -", "- root", "user root"])
def test_a_snapshot_has_sessions_and_sockets_in_it_and_no_boot(tmp_path: Path, users: str | None) -> None:
    """A user whose session can't be opened keeps nobody else's, and no snapshot, from being made."""
    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        assert await ask(host, orders.seal()) == [b"sealed"]
        assert guest.is_open() == [True, True]

    done = talk(tmp_path, conversation, users).done
    opened = [("session", name) for name in reversed(identity.USERS)] if users else []
    assert done == ["booted", *opened, ("quiet", [False, False]), "rehearse"]


@pytest.mark.parametrize(("port", "stays"), [(qrexec.CONTROL_PORT, True), (qdb.PORT, True), (qdb.PORT + 1, False), (0, False)])
def test_the_host_opens_two_channels_and_no_other(tmp_path: Path, port: int, stays: bool) -> None:
    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        await ask(host, orders.become(WHO))
        opened: Recorder = host.recorder(Address(WHO.xid, 0, port))
        if stays:
            await opened.until(lambda: bool(opened.got))
        else:
            await opened.until_ended()
        assert opened.ended is not stays

    talk(tmp_path, conversation)


def test_an_agent_ends_when_the_daemon_breaks_the_protocol_and_not_when_it_hangs_up(tmp_path: Path) -> None:
    async def conversation(host: Side, agent: Agent, guest: Guest) -> None:
        agent._lost("")
        with pytest.raises(SystemExit, match="a length"):
            agent._lost("a length")

    talk(tmp_path, conversation)


# -- the guest itself --------------------------------------------------------------------------------------------------------


class Real:
    """The real `System`, on a machine that writes down what it would do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.system = System()
        self.done: list[object] = []
        self.fails: tuple[str, ...] = ()
        monkeypatch.setattr(background, "spawn", self._spawn)
        monkeypatch.setattr(private_volume, "mount", lambda *words: self._step("mount", *words) or [])
        monkeypatch.setattr(volumes, "enable_swap", lambda: self._step("swap"))
        monkeypatch.setattr(volumes, "run_rc_local", lambda: self._step("rc.local"))
        monkeypatch.setattr(identity, "link_journal", lambda machine_id: self._step("journal", machine_id))
        monkeypatch.setattr(refresh, "Refresh", lambda: self)

    def begin(self) -> None:
        self._step("refresh")

    def _step(self, *words: object) -> None:
        self.done.append(words if len(words) > 1 else words[0])
        if words[0] in self.fails:
            raise OSError(5, "bad disk")

    def _spawn(self, argv: Sequence[str], on_end: Callable[[], None] = lambda: None) -> None:
        self._step(" ".join(argv[1:]))
        on_end()


@pytest.fixture
def real(monkeypatch: pytest.MonkeyPatch) -> Real:
    return Real(monkeypatch)


STANDBY = "--no-block start cloison-standby.service"


def test_a_start_settles_into_swap_stand_in_journal_and_the_users_own_script(real: Real) -> None:
    real.system.settle(WHO)
    assert real.done == ["swap", STANDBY, ("journal", WHO.machine_id), "rc.local"]
    real.done.clear()
    real.system.settle(WHO)
    assert STANDBY not in real.done, "somebody stands by already"


@pytest.mark.parametrize(("entries", "more"), [
    ({"/qubes-service/user-manager": "1"}, "--no-block start user@1000.service"), ({"/qubes-service/user-manager": "0"}, ""),
    ({"/qubes-service/fresh-daemons": "1"}, "refresh"), ({"/qubes-service/fresh-daemons": "0"}, ""),
])
def test_services_of_a_start(real: Real, entries: dict[str, str], more: str) -> None:
    real.system.settle(WHO._replace(qubesdb={**WHO.qubesdb, **entries}))
    assert real.done == ["swap", STANDBY, ("journal", WHO.machine_id), *filter(None, [more]), "rc.local"]


def test_the_users_own_script_is_not_run_where_only_what_is_listed_is_kept(real: Real) -> None:
    real.system.settle(WHO._replace(qubesdb={"/qubes-service/custom-persist": "1"}))
    assert "rc.local" not in real.done


@pytest.mark.parametrize(("persistence", "blank", "mounts"), [("none", True, True), ("none", False, False), ("full", True, False)])
def test_a_volume_that_could_wait_is_mounted_then(real: Real, persistence: str, blank: bool, mounts: bool) -> None:
    who = WHO._replace(qubesdb={"/qubes-vm-persistence": persistence}, private_blank=blank)
    real.system.settle(who)
    assert (real.done[0] == ("mount", persistence, who.private_size, who.qubesdb)) is mounts
    assert ("swap" in real.done) and real.done.count("swap") == 1


@pytest.mark.parametrize("step", ["mount", "swap"])
def test_a_disk_that_fails_keeps_nothing_else_from_being_done(
    real: Real, step: str, capsys: pytest.CaptureFixture[str],
) -> None:
    real.fails = (step,)
    real.system.settle(WHO._replace(qubesdb={"/qubes-vm-persistence": "none"}, private_blank=True))
    assert real.done[-3:] == [STANDBY, ("journal", WHO.machine_id), "rc.local"]
    assert "bad disk" in capsys.readouterr().err


BOOTED = f"120 {module.SYSTEMCTL} is-system-running --wait --quiet"


def test_a_snapshot_waits_for_the_stand_in_and_then_for_the_boot(real: Real) -> None:
    real.system.when_booted(lambda: real.done.append("then"))
    assert real.done == ["start cloison-standby.service", BOOTED, "then"]
    real.done.clear()
    real.system.settle(WHO)
    assert STANDBY not in real.done, "the snapshot has it"


@pytest.mark.parametrize("fails", [("start cloison-standby.service",), (BOOTED,), ("start cloison-standby.service", BOOTED)])
def test_a_boot_that_can_not_be_waited_for_is_given_up_once(real: Real, fails: tuple[str, ...]) -> None:
    real.fails = fails
    real.system.when_booted(lambda: real.done.append("then"))
    assert real.done == ["start cloison-standby.service", BOOTED, "then"]


def test_power_goes_off_in_order(real: Real) -> None:
    real.system.power_off()
    assert real.done == ["poweroff --no-wall"]


def test_what_the_system_becomes_and_its_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(identity, "become", lambda who: asked.append(who) or ["a problem"])
    monkeypatch.setattr(identity, "set_clock", asked.append)
    monkeypatch.setattr(identity, "rehearse", lambda: asked.append("rehearse"))
    system = System()
    assert system.become(WHO) == ["a problem"]
    system.set_clock(17)
    system.rehearse()
    assert asked == [WHO, 17, "rehearse"]


def test_devices_that_can_not_be_followed_are_no_agents_end(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:
    class Nothing:
        def __init__(self, publish: devices.Publish) -> None:
            self.publish = publish

        def follow(self) -> None:
            self.publish({})
            raise OSError(1, "no netlink")

    monkeypatch.setattr(devices, "Devices", Nothing)
    told: list[object] = []
    System().follow_devices(told.append)
    assert told == [{}] and "no netlink" in capsys.readouterr().err


# -- the program -------------------------------------------------------------------------------------------------------------


def test_a_new_agent_finds_the_host_and_leaves_nothing_that_was_meant_for_the_former(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANNOUNCE_AGAIN", 0.01)
    ours, theirs = socket.socketpair()
    ours.settimeout(PATIENCE)
    heard: list[bool] = []

    def host() -> None:
        ours.sendall(b"for the former agent")
        deaf, side = True, rejoin.HostSide()
        while not side.done:
            data = ours.recv(4096)
            if deaf:                     # the first announcement is taken for bytes of the former agent's
                deaf = False
                continue
            if answer := side.feed(data):
                ours.sendall(answer)
        heard.append(side.done)
        ours.sendall(b"mux")

    thread = threading.Thread(target=host, daemon=True)
    with ours, theirs:
        theirs.setblocking(False)
        thread.start()
        finder = threading.Thread(target=module._find_host, args=(theirs.fileno(),), daemon=True)
        finder.start()
        finder.join(PATIENCE / 2)
        assert not finder.is_alive()
        thread.join(PATIENCE)
        assert heard == [True] and not theirs.getblocking()
        assert not os.get_blocking(theirs.fileno())
        assert theirs.recv(100) == b"mux"


@pytest.mark.parametrize("rounds", [1, 2])
def test_an_agent_takes_its_turn_before_it_touches_the_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rounds: int,
) -> None:
    """The first of a boot speaks at once; one after it looks for the host first."""
    done: list[str] = []
    port, been_here = tmp_path / "port", tmp_path / "been-here"
    os.mkfifo(port)
    monkeypatch.setattr(module, "PORT", str(port))
    monkeypatch.setattr(module, "BEEN_HERE", str(been_here))
    monkeypatch.setattr(module.standby, "take_turn", lambda: done.append("turn"))
    monkeypatch.setattr(module.inheritance, "shelter", lambda: done.append("shelter"))
    monkeypatch.setattr(module.placement, "share_processor_with", lambda path: done.append(f"placed {Path(path).name}"))
    opened: list[int] = []
    there = asyncio.Event()
    monkeypatch.setattr(module, "_find_host", lambda fd: done.append(f"find {been_here.exists()}"))

    def made(fd: int, system: System, on_end: object) -> None:
        opened.append(fd)
        assert not os.get_blocking(fd) and not os.get_inheritable(fd) and been_here.exists()
        done.append("agent")
        asyncio.get_running_loop().call_soon(there.set)

    monkeypatch.setattr(module, "Agent", made)

    async def main() -> None:
        nonlocal there
        there = asyncio.Event()
        running = asyncio.ensure_future(module.main())
        async with asyncio.timeout(PATIENCE):
            await there.wait()
        assert not running.done()
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    for number in range(rounds):
        done.clear()
        asyncio.run(main())
        assert done == ["turn", "shelter", "placed port", *(["find True"] if number else []), "agent"]
    for fd in opened:
        os.close(fd)
