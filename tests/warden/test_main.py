"""A warden's whole life over a machine without QEMU, with the real agent as its guest, or a hostile one."""
from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.patience import PATIENCE
from tests.qrexec.served_qube import USER, Caller, Result
from tests.runtime.ports import News, Recorder, Side
from tests.warden.guests import Guest

from cloison.errors import MachineError
from cloison.hypervisor.base import MachineSpec, MachineState
from cloison.hypervisor.fake import Boot, FakeMachine, silent
from cloison.hypervisor.qemu import warm
from cloison.runtime import life
from cloison.runtime.paths import Paths
from cloison.storage.base import MAX_SIZE
from cloison.warden import main, space
from cloison.warden.blocks import Blocks
from cloison.warden.main import Warden
from cloison.warden.space import SpaceWait
from cloison.warden.starting import NOBODY, console_tail
from cloison.wire import agent, qdb, qrexec
from cloison.wire.mux import GUEST
from cloison.wire.warden import RESUME, DiskSource, Kernel, Launch, Layer, Lines, encode

UUID = "00000000-0000-4000-8000-000000000001"
MEGABYTE = 1 << 20


class Qubesd(News):
    """The other end of a warden's control connection."""

    def __init__(self, stream: socket.socket) -> None:
        super().__init__()
        stream.setblocking(False)
        self.stream = stream
        self.events: list[dict[str, Any]] = []
        self.replies: dict[int, dict[str, Any]] = {}
        self.hung_up = False
        self._number = 0
        self._lines = Lines()
        asyncio.get_running_loop().add_reader(stream, self._readable)

    def _readable(self) -> None:
        try:
            data = self.stream.recv(65536)
        except ConnectionResetError:
            data = b""
        for message in self._lines.feed(data):
            if "event" in message:
                self.events.append(message)
            else:
                self.replies[message["id"]] = message
        if not data:
            self.hung_up = True
            self.close()
        self.tell()

    async def ask(self, do: str, **fields: object) -> dict[str, Any]:
        self._number += 1
        number = self._number
        self.stream.send(encode({"id": number, "do": do, **fields}))
        await self.until(lambda: number in self.replies or self.hung_up)
        return self.replies.get(number, {})

    async def heard(self, event: str) -> dict[str, Any]:
        await self.until(lambda: self.hung_up or any(each["event"] == event for each in self.events))
        return next(each for each in self.events if each["event"] == event)

    def close(self) -> None:
        if self.stream.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self.stream)
            self.stream.close()


class Place:
    """An installation in a folder, and one launch in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.paths = Paths.from_environment({"CLOISON_ROOT": str(folder)})
        self.paths.ensure()
        (folder / "root.img").write_bytes(bytes(MEGABYTE))
        disks = (DiskSource("root", MEGABYTE, (Layer(str(folder / "root.img"), "raw"),)), DiskSource("private", MEGABYTE))
        self.launch = Launch("work", UUID, 7, 400, 2, disks, Kernel("6.1", "/k", "/i", "/m"), default_user=USER, start_timeout=60,
                             identity={"/name": "work", "/qubes-vm-type": "AppVM"})
        self.machines: list[FakeMachine] = []
        self.lease: socket.socket | None = None

    def run(self, boot: Boot, work: Callable[[Qubesd], Awaitable[None]], *, launch: Launch | None = None) -> None:
        """A warden of its own for the work; it has ended, and left nothing behind, when this returns."""
        async def both() -> None:
            ours, theirs = socket.socketpair()
            qubesd = Qubesd(ours)

            def make(spec: MachineSpec) -> FakeMachine:
                self.machines.append(FakeMachine(spec, boot))
                return self.machines[-1]

            warden = Warden(self.paths, launch or self.launch, theirs, self.lease, None, make_machine=make)
            running = asyncio.create_task(warden.run())
            async with asyncio.timeout(PATIENCE):
                await work(qubesd)
                await running
            qubesd.close()

        before = len(os.listdir("/proc/self/fd"))
        asyncio.run(both())
        assert os.listdir(self.paths.qubes) == [] and os.listdir(self.paths.tmp) == []
        assert len(os.listdir("/proc/self/fd")) <= before + 1, "its lock's descriptor ends with its process"


@pytest.fixture
def place() -> Iterator[Place]:
    """In a folder with a short name, as sockets need."""
    with tempfile.TemporaryDirectory(prefix="cloison-") as folder:
        yield Place(Path(folder))


def test_from_start_to_shutdown(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        assert (await qubesd.heard("running"))["start"] == "cold"
        assert guest.who is not None and guest.who.qubesdb == place.launch.identity and guest.who.private_size == MEGABYTE
        assert sorted(os.listdir(place.paths.qubes)) == [
            f"life.{UUID}", "qrexec.7", f"qrexec.uuid:{UUID}", "qrexec.work", f"warden.{UUID}.sock"]
        status = await qubesd.ask("status")
        assert (status["state"], status["name"], status["xid"]) == ("running", "work", 7)
        call = Caller(Path(place.paths.qubes, "qrexec.work"), "DEFAULT:echo hello", qrexec.EXEC_CMDLINE)
        assert await call.run() == Result(b"hello\n", b"", 0)
        assert (await qubesd.ask("shutdown"))["ok"]
        await qubesd.heard("halting")
        assert (await qubesd.heard("stopped"))["status"] == 0

    place.run(guest.boot, work)


@pytest.mark.parametrize("problems", [[], ["no /rw\nat all", "and no \x1b[31mhome"]])
def test_what_the_agent_says_is_wrong_is_passed_on_and_logged(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problems: list[str],
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(main, "say", logged.append)
    guest = Guest(tmp_path)
    guest.problems = problems
    said = "no /rw_at all; and no _[31mhome" if problems else ""

    async def work(qubesd: Qubesd) -> None:
        assert (await qubesd.heard("running"))["note"] == said
        assert (await qubesd.ask("status"))["note"] == said
        await qubesd.ask("kill")

    place.run(guest.boot, work)
    assert [line for line in logged if "says" in line] == ([f"work says: {said}"] if said else [])


def test_identities_of_two_starts_differ_but_for_the_machine_id(place: Place, tmp_path: Path) -> None:
    seen = []
    for _ in range(2):
        guest = Guest(tmp_path)

        async def work(qubesd: Qubesd) -> None:
            await qubesd.heard("running")
            await qubesd.ask("kill")

        place.run(guest.boot, work)
        assert guest.who is not None
        seen.append(guest.who)
    one, two = seen
    assert one.machine_id == two.machine_id and len(one.machine_id) == 32
    assert one.boot_id != two.boot_id and one.entropy != two.entropy and len(bytes.fromhex(one.entropy)) == 64


def test_a_disk_grows_and_never_shrinks(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        assert (await qubesd.ask("resize", role="private", size=3 * MEGABYTE))["ok"]
        assert (await qubesd.ask("resize", role="private", size=3 * MEGABYTE))["ok"], "twice is fine"
        wrong: list[tuple[object, object]] = [
            ("private", 2 * MEGABYTE), ("private", 1 << 60), ("private", None), ("private", True), ("private", "5000000"),
            ("private", -1), ("modules", MEGABYTE), ("../x", MEGABYTE), (None, MEGABYTE), ([], MEGABYTE)]
        for role, size in wrong:
            assert "error" in await qubesd.ask("resize", role=role, size=size)
        assert place.machines[0].sizes == {"private": 3 * MEGABYTE}
        await qubesd.ask("kill")

    place.run(guest.boot, work)


def test_pause_unpause_sets_the_clock(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once it runs: a time that waits for a paused machine is over when it is read."""
    guest = Guest(tmp_path)
    resume = FakeMachine.resume

    async def resumed(machine: FakeMachine) -> None:
        for _ in range(20):                              # turns of the loop, in which anything that was sent arrives
            await asyncio.sleep(0)
        assert len(guest.clocks) == 1
        await resume(machine)

    monkeypatch.setattr(FakeMachine, "resume", resumed)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        await guest.until(lambda: len(guest.clocks) == 1)
        assert (await qubesd.ask("pause"))["state"] == "paused"
        assert (await qubesd.ask("unpause"))["state"] == "running"
        await guest.until(lambda: len(guest.clocks) == 2)
        assert guest.clocks == sorted(guest.clocks)
        await qubesd.ask("kill")
        assert (await qubesd.heard("stopped"))["status"] != 0

    place.run(guest.boot, work)


class Disk:
    """What is free where the disks of the warden's machine grow."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = 0
        monkeypatch.setattr(space, "FIRST", 0.0)
        monkeypatch.setattr(main, "SpaceWait", partial(SpaceWait, free=lambda _folder: self.free))


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_a_full_disk_is_told_and_the_machine_goes_on_when_there_is_space(
    place: Place, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(main, "say", logged.append)
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        assert (await qubesd.ask("status"))["space"] == ""
        place.machines[0].write()
        assert (await qubesd.heard("space-wanted"))["where"] == place.paths.tmp
        status = await qubesd.ask("status")
        assert (status["state"], status["space"]) == ("running", place.paths.tmp)
        full = f"{place.paths.tmp} is full; it goes on by itself when 64 MB are free there"
        assert (await qubesd.ask("unpause"))["error"] == (await qubesd.ask("shutdown"))["error"] == full
        place.machines[0].full, disk.free = False, RESUME
        assert (await qubesd.heard("space-back"))["state"] == "running"
        await guest.until(lambda: len(guest.clocks) == 2)
        assert (await qubesd.ask("status"))["space"] == ""
        await qubesd.ask("shutdown")
        await qubesd.heard("stopped")

    place.run(guest.boot, work)
    assert [line.split(":")[0] for line in logged if "disk space" in line] == ["work waits for disk space", "work goes on"]


def test_paused_while_it_waits_for_space_it_stays_paused(place: Place, disk: Disk, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        place.machines[0].write()
        await qubesd.heard("space-wanted")
        paused = await qubesd.ask("pause")
        assert (paused["state"], paused["space"]) == ("paused", "")
        place.machines[0].full, disk.free = False, RESUME
        assert (await qubesd.ask("unpause"))["state"] == "running"
        assert place.machines[0].state is MachineState.RUNNING
        assert [each["event"] for each in qubesd.events].count("space-back") == 0
        await qubesd.ask("kill")

    place.run(guest.boot, work)


def test_killed_while_it_waits_for_space(place: Place, disk: Disk, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        place.machines[0].write()
        await qubesd.heard("space-wanted")
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(guest.boot, work)


def test_a_start_that_finds_no_space_fails_at_once_and_says_why(place: Place, disk: Disk) -> None:
    async def work(qubesd: Qubesd) -> None:
        failed = await qubesd.heard("failed")
        assert f"{place.paths.tmp} is full" in failed["reason"]

    place.run(lambda machine, _port: machine.write(), work)


def test_a_machine_that_can_not_go_on_is_ended(place: Place, disk: Disk, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        place.machines[0].write("internal-error")
        assert (await qubesd.heard("broken"))["why"] == "internal-error"
        await qubesd.heard("stopped")

    place.run(guest.boot, work)


def test_a_machine_that_takes_more_memory_than_was_said_is_ended(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:
    logged: list[str] = []
    monkeypatch.setattr(main, "say", logged.append)
    watched: list[tuple[int, int]] = []
    over: list[asyncio.Future[int]] = []

    async def until_over(pid: int, most: int) -> int:
        watched.append((pid, most))
        over.append(asyncio.get_running_loop().create_future())
        return await over[0]

    monkeypatch.setattr(main.watch, "until_over", until_over)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        assert watched == [(os.getpid(), 595 << 20)], "400 MiB, a quarter more and 95"
        over[0].set_result(700 << 20)
        assert (await qubesd.heard("stopped"))["status"] == -signal.SIGKILL

    place.run(Guest(tmp_path).boot, work)
    assert "work: its QEMU used 700 MiB of memory, which no guest should need: it was ended" in logged


@pytest.mark.parametrize(("error", "ends"), [(MemoryError(), True), (ValueError("a bug"), False)])
def test_without_memory_nothing_is_sure_and_the_qube_ends(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, ends: bool,
) -> None:
    lifted: list[int] = []
    monkeypatch.setattr(main.memory, "lift", lambda: lifted.append(1))

    def fail() -> None:
        raise error

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        asyncio.get_running_loop().call_soon(fail)
        if ends:
            await qubesd.heard("stopped")
        else:
            assert (await qubesd.ask("status"))["state"] == "running"
            await qubesd.ask("kill")

    place.run(Guest(tmp_path).boot, work)
    assert lifted == [1] * ends and type(error).__name__ in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_a_pause_cuts_what_other_qubes_keep_it_waiting_for_while_it_lasts_and_no_longer(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool,
) -> None:
    handles: list[asyncio.TimerHandle] = []
    patience, pause = Blocks.patience, FakeMachine.pause

    def begun(blocks: Blocks) -> asyncio.TimerHandle:
        handles.append(patience(blocks))
        return handles[-1]

    async def paused(machine: FakeMachine) -> None:
        assert len(handles) == 1 and not handles[0].cancelled()
        if fails:
            raise MachineError("it can't")
        await pause(machine)

    monkeypatch.setattr(Blocks, "patience", begun)
    monkeypatch.setattr(FakeMachine, "pause", paused)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        answer = await qubesd.ask("pause")
        assert ("error" in answer) is fails and handles[0].cancelled()
        assert (await qubesd.ask("status"))["state"] == ("running" if fails else "paused")
        await qubesd.ask("kill")

    place.run(Guest(tmp_path).boot, work)


def test_a_size_that_the_machine_refused_was_never_told(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    announce = FakeMachine.announce_size
    refused = [True]

    async def once(machine: FakeMachine, role: str, size: int) -> None:
        if refused:
            refused.pop()
            raise MachineError("it can't")
        await announce(machine, role, size)

    monkeypatch.setattr(FakeMachine, "announce_size", once)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        assert "error" in await qubesd.ask("resize", role="private", size=5 * MEGABYTE)
        assert (await qubesd.ask("resize", role="private", size=2 * MEGABYTE))["ok"]
        assert (await qubesd.ask("resize", role="private", size=MAX_SIZE))["ok"]
        assert "error" in await qubesd.ask("resize", role="private", size=MAX_SIZE + 1)
        await qubesd.ask("kill")

    place.run(Guest(tmp_path).boot, work)


def test_a_warm_start_is_told_the_sizes_that_differ_from_its_images_and_a_cold_one_none(place: Place) -> None:
    folder = place.folder / "image"
    folder.mkdir()
    (folder / warm.DISK).write_bytes(bytes(MEGABYTE))
    root, private = place.launch.disks
    told = []
    for size, warm_folder in ((3 << 30, str(folder)), (warm.MADE_SIZES["private"], str(folder)), (3 << 30, None)):
        disks = (root, dataclasses.replace(private, size=size))

        async def work(qubesd: Qubesd) -> None:
            await qubesd.heard("running")
            await qubesd.ask("kill")

        place.run(talking([], "running"), work, launch=dataclasses.replace(place.launch, warm=warm_folder, disks=disks))
        told.append(place.machines[-1].sizes)
    assert told == [{"private": 3 << 30}, {}, {}]


def test_status_says_which_commits_it_runs_from_and_a_halting_qube_stays_so(place: Place) -> None:
    root, private = place.launch.disks
    sides: list[Side] = []

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        status = await qubesd.ask("status")
        assert (status["commits"], status["blocks"], status["pid"], status["uuid"], status["memory"]) == (
            {"root": "c1"}, [], os.getpid(), UUID, 400)
        sides[0].port.control(agent.report("halting"))
        await qubesd.heard("halting")
        assert (await qubesd.ask("unpause"))["state"] == "halting"
        first = (await qubesd.ask("console"))["tty"]
        assert (await qubesd.ask("console"))["tty"] == first and Path(first).is_char_device()
        await qubesd.ask("kill")

    place.run(talking(sides, "running"), work,
              launch=dataclasses.replace(place.launch, disks=(dataclasses.replace(root, commit="c1"), private)))


def test_orders_that_make_no_sense(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        assert "knows no order 'dance'" in (await qubesd.ask("dance"))["error"]
        senseless: tuple[object, ...] = (None, [], {"no slash": "x"}, {"/x": "y" * 5000})
        for entries in senseless:
            assert (await qubesd.ask("qdb", entries=entries)).get("error")
        assert (await qubesd.ask("qdb", entries={"/new": "1", "/name": None}))["ok"]
        await qubesd.ask("kill")

    place.run(guest.boot, work)


def test_a_qubesd_that_comes_later_is_served_and_both_hear_the_end(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        qubesd.close()                                   # kill -9 of qubesd: the qube goes on
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(os.path.join(place.paths.qubes, f"warden.{UUID}.sock"))
        later = Qubesd(stream)
        assert (await later.ask("status"))["state"] == "running"
        later.stream.send(b"not json\n")
        await later.until(lambda: later.hung_up)
        stream = socket.socket(socket.AF_UNIX)
        stream.connect(os.path.join(place.paths.qubes, f"warden.{UUID}.sock"))
        last = Qubesd(stream)
        await last.ask("kill")
        await last.heard("stopped")
        await last.until(lambda: last.hung_up)

    place.run(guest.boot, work)


def test_qubesd_lost_before_the_start_is_done(place: Place) -> None:
    async def work(qubesd: Qubesd) -> None:
        qubesd.close()

    place.run(silent, work)
    assert place.machines[0].spec.uuid == UUID


def test_lease_hangs_up(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    ours, place.lease = socket.socketpair()

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        ours.close()
        await qubesd.heard("stopped")

    with place.lease:
        place.run(guest.boot, work)


def test_a_lease_that_ends_during_the_start_ends_it(place: Place) -> None:
    ours, place.lease = socket.socketpair()

    async def work(qubesd: Qubesd) -> None:
        assert (await qubesd.ask("status"))["state"] == "starting"
        ours.close()
        assert (await qubesd.heard("failed"))["reason"].startswith("work did not start")

    with place.lease:
        place.run(silent, work)
    assert place.machines[0].state is MachineState.GONE


def test_a_start_can_be_looked_at_and_killed(place: Place) -> None:
    """Nobody but who asked for it: other doors open when it runs."""
    async def work(qubesd: Qubesd) -> None:
        status = await qubesd.ask("status")
        assert (status["state"], status["start"], status["note"], status["space"]) == ("starting", "cold", "", "")
        assert not os.path.exists(os.path.join(place.paths.qubes, f"warden.{UUID}.sock"))
        assert (await qubesd.ask("kill"))["ok"]
        assert (await qubesd.heard("failed"))["reason"].startswith("work did not start")
        assert [each["event"] for each in qubesd.events if each["event"] != "channels-lost"] == ["failed"]

    place.run(silent, work)


def test_what_the_agent_says_after_its_first_word_changes_nothing(place: Place) -> None:
    sides: list[Side] = []

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        for word in ("running", "failed", "running"):
            sides[0].port.control(agent.report(word, "of another mind"))
        sides[0].port.control(agent.report("halting"))
        await qubesd.heard("halting")
        status = await qubesd.ask("status")
        assert (status["state"], status["note"]) == ("halting", "")
        assert [each["event"] for each in qubesd.events] == ["running", "halting"]
        await qubesd.ask("kill")

    place.run(talking(sides, "running"), work)


def test_shutdown_of_a_guest_without_agent_presses_the_button(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        await qubesd.ask("pause")
        machine = place.machines[0]
        machine.on_power_button = machine.end
        await qubesd.ask("shutdown")
        await qubesd.heard("stopped")

    place.run(guest.boot, work)


# -- starts that fail ------------------------------------------------------------------------------------------------------------


def failing(place: Place, boot: Boot, launch: Launch | None = None) -> str:
    """The reason that qubesd is told."""
    reasons: list[str] = []

    async def work(qubesd: Qubesd) -> None:
        reasons.append((await qubesd.heard("failed"))["reason"])
        assert [each["event"] for each in qubesd.events if each["event"] == "running"] == []

    place.run(boot, work, launch=launch)
    return reasons[0]


@pytest.mark.parametrize("fault", [OSError(5, "Input/output error"), ValueError("no such zone \x1b[2J")])
def test_agent_that_can_not_become_the_qube(place: Place, tmp_path: Path, fault: Exception) -> None:
    reason = failing(place, Guest(tmp_path, fault).boot)
    assert reason.startswith("work did not start: its agent says: ") and reason.isprintable()


def test_machine_that_ends_while_starting(place: Place) -> None:
    def boot(machine: FakeMachine, _port: socket.socket) -> None:
        machine.end(1, "qemu: no such device")

    assert failing(place, boot).endswith("; qemu: no such device")


def test_silent_guest_is_given_up_and_its_console_shown(place: Place) -> None:
    from dataclasses import replace

    def boot(machine: FakeMachine, _port: socket.socket) -> None:
        machine.print(b"Kernel panic\r\n\x1b[31m - not syncing")

    reason = failing(place, boot, replace(place.launch, start_timeout=1))
    assert reason == ("work did not start: no answer from the guest's agent after 1 s; "
                      "last on its console: Kernel panic [31m - not syncing")


def test_disk_that_is_missing(place: Place) -> None:
    os.unlink(place.folder / "root.img")
    assert "a disk can't be opened" in failing(place, silent)
    assert place.machines == []


def test_qube_that_lives_already(place: Place) -> None:
    fd = life.take(place.paths.qubes, UUID)
    try:
        async def work(qubesd: Qubesd) -> None:
            assert "did not start" in (await qubesd.heard("failed"))["reason"]

        async def run() -> None:
            ours, theirs = socket.socketpair()
            qubesd = Qubesd(ours)
            warden = Warden(place.paths, place.launch, theirs, None, None, make_machine=FakeMachine)
            await asyncio.gather(warden.run(), work(qubesd))
            qubesd.close()

        asyncio.run(run())
        assert os.listdir(place.paths.qubes) == [f"life.{UUID}"], "the living one's file stays"
    finally:
        os.close(fd)


def test_what_is_left_of_the_box_ends_with_the_machine(place: Place, tmp_path: Path) -> None:
    """A sandbox that was killed while it was set up leaves a child that holds the qube's lock, and that nobody else knows of."""
    guest = Guest(tmp_path)
    left: list[subprocess.Popen[bytes]] = []

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        lock = os.path.realpath(os.path.join(place.paths.qubes, f"life.{UUID}"))
        fd = next(int(entry.name) for entry in Path("/proc/self/fd").iterdir() if os.path.realpath(entry) == lock)
        left.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=[fd]))
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(guest.boot, work)
    with left[0] as process:
        assert process.wait(PATIENCE) == -signal.SIGKILL


def test_callers_are_hung_up_on_when_the_agent_ends(place: Place) -> None:
    machines: list[FakeMachine] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        machines.append(machine)
        side = Side(port, GUEST)
        side.record_all({})
        side.port.control(agent.report("running"))

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        with socket.socket(socket.AF_UNIX) as caller:
            caller.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(caller, os.path.join(place.paths.qubes, "qrexec.work"))
            assert await loop.sock_recv(caller, 4096) == qrexec.hello(qrexec.SOCKET_VERSION)
            with Caller(Path(place.paths.qubes, "qrexec.work"), "DEFAULT:true", qrexec.EXEC_CMDLINE) as asked:
                assert await asked.request() is not None         # and the agent has not taken its data channel up
                machines[0].left.set()
                for stream in (caller, asked.control, asked.data):
                    with contextlib.suppress(ConnectionResetError):      # what was sent has not been read
                        while await loop.sock_recv(stream, 4096):
                            pass
        assert "agent" in (await qubesd.heard("channels-lost"))["reason"]
        assert not os.path.lexists(os.path.join(place.paths.qubes, "qrexec.work"))
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


def talking(said: list[Side], *words: str) -> Boot:
    """A guest whose agent says these words, and whatever its side is told to say later."""
    def boot(_machine: FakeMachine, port: socket.socket) -> None:
        side = Side(port, GUEST)
        side.record_all({})
        said.append(side)
        for word in words:
            side.port.control(agent.report(word))

    return boot


def test_an_agent_that_ends_because_its_guest_halts_breaks_nothing(place: Place) -> None:
    sides: list[Side] = []

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        sides[0].port.control(agent.report("halting"))
        await qubesd.heard("halting")
        place.machines[0].left.set()
        for _ in range(3):
            assert (await qubesd.ask("status"))["state"] == "halting"
        assert [each["event"] for each in qubesd.events] == ["running", "halting"]
        place.machines[0].end()
        await qubesd.heard("stopped")

    place.run(talking(sides, "running"), work)


def test_a_machine_that_closes_its_agents_port_and_lives_on_is_killed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    logged: list[str] = []
    monkeypatch.setattr(main, "say", logged.append)
    monkeypatch.setattr(main, "END_TIME", 0.0)
    sides: list[Side] = []
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        talking(sides, "running")(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        ports[0].shutdown(socket.SHUT_RDWR)
        await qubesd.heard("channels-lost")
        assert (await qubesd.heard("stopped"))["status"] != 0

    place.run(boot, work)
    assert [line for line in logged if "killed" in line] == [
        "work: its QEMU closed the agent's port and did not end: it was killed"]


def test_a_machine_that_ends_in_its_own_time_after_it_has_hung_up_is_not_killed(
    place: Place, monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It closes its files before it ends: the warden gives it the time."""
    logged: list[str] = []
    monkeypatch.setattr(main, "say", logged.append)
    sides: list[Side] = []
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        talking(sides, "running")(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        ports[0].shutdown(socket.SHUT_RDWR)
        await qubesd.heard("channels-lost")
        assert (await qubesd.ask("status"))["state"] == "running", "unknown is not halted"
        place.machines[0].end(0, "what QEMU said last")
        assert (await qubesd.heard("stopped"))["status"] == 0

    place.run(boot, work)
    assert logged[-1] == "work: stopped, status 0 of its QEMU: what QEMU said last"


def test_halting_is_told_once_and_of_a_running_qube_only(place: Place) -> None:
    sides: list[Side] = []

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        await qubesd.ask("pause")
        sides[0].port.control(agent.report("halting"))
        for _ in range(3):
            assert (await qubesd.ask("status"))["state"] == "paused"
        await qubesd.ask("unpause")
        for _ in range(2):
            sides[0].port.control(agent.report("halting"))
        await qubesd.heard("halting")
        for _ in range(3):
            assert (await qubesd.ask("status"))["state"] == "halting"
        assert [each["event"] for each in qubesd.events] == ["running", "halting"]
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(talking(sides, "running"), work)


def test_a_warm_machine_has_the_uuid_that_its_image_was_made_with(place: Place) -> None:
    """A guest of a warm image sees the one of the making; who it is now it learns from the agent."""
    folder = place.folder / "image"
    folder.mkdir()
    (folder / warm.DISK).write_bytes(bytes(MEGABYTE))
    (folder / warm.STATE).write_bytes(b"")
    sides: list[Side] = []

    async def work(qubesd: Qubesd) -> None:
        assert (await qubesd.heard("running"))["start"] == "warm"
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(talking(sides, "running"), work, launch=dataclasses.replace(place.launch, warm=str(folder)))
    place.run(talking(sides, "running"), until_killed)
    assert [machine.spec.uuid for machine in place.machines] == [NOBODY, UUID]
    assert NOBODY not in (UUID, place.launch.uuid)


def test_a_warm_start_whose_machine_answers_nothing_is_given_up(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = place.folder / "image"
    folder.mkdir()
    (folder / warm.DISK).write_bytes(bytes(MEGABYTE))

    async def never(_machine: FakeMachine, _role: str, _size: int) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(FakeMachine, "announce_size", never)
    launch = dataclasses.replace(place.launch, warm=str(folder), start_timeout=1)
    assert failing(place, silent, launch) == "work did not start: its QEMU did not answer in 1 s"


async def until_killed(qubesd: Qubesd) -> None:
    assert (await qubesd.heard("running"))["start"] == "cold"
    await qubesd.ask("kill")
    await qubesd.heard("stopped")


@pytest.mark.parametrize("times", [1, 3])
def test_a_new_agent_takes_the_qube_up_as_the_qube_that_it_is(place: Place, tmp_path: Path, times: int) -> None:
    guest = Guest(tmp_path)
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        guest.boot(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        was = guest.who
        for number in range(times):
            await qubesd.ask("qdb", entries={"/vm-config/number": str(number)})
            clocks = len(guest.clocks)
            qubesd.events.clear()
            await guest.agent_is_replaced(ports[0])
            await qubesd.heard("channels-back")
            assert [event["event"] for event in qubesd.events] == ["channels-lost", "channels-back"]
            assert guest.who is was                      # nobody became it once more: nothing is mounted or drawn twice
            await guest.until(lambda clocks=clocks: len(guest.clocks) > clocks)
            call = Caller(Path(place.paths.qubes, "qrexec.work"), "DEFAULT:echo hello", qrexec.EXEC_CMDLINE)
            assert await call.run() == Result(b"hello\n", b"", 0)
            with socket.socket(socket.AF_UNIX) as program:       # in the qube: QubesDB is whole, and goes on
                program.settimeout(0)
                loop = asyncio.get_running_loop()
                await loop.sock_connect(program, guest.qubesdb_socket)
                value = b""
                while str(number).encode() not in value[qdb.HEADER.size:]:
                    await loop.sock_sendall(program, qdb.encode(qdb.READ, "/vm-config/number"))
                    value = await loop.sock_recv(program, 4096)
        qubesd.events.clear()
        place.machines[0].left.set()                     # the new one ends, too, and says nothing
        assert "agent" in (await qubesd.heard("channels-lost"))["reason"]
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


def test_a_paused_qubes_new_agent_takes_it_up_too(place: Place, tmp_path: Path) -> None:
    """What it says of halting counts only once the qube runs again."""
    guest = Guest(tmp_path)
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        guest.boot(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        await qubesd.ask("pause")
        await guest.agent_is_replaced(ports[0])
        await qubesd.heard("channels-back")
        assert (await qubesd.ask("status"))["state"] == "paused"
        assert (await qubesd.ask("unpause"))["state"] == "running"
        call = Caller(Path(place.paths.qubes, "qrexec.work"), "DEFAULT:echo hello", qrexec.EXEC_CMDLINE)
        assert await call.run() == Result(b"hello\n", b"", 0)
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


def test_agents_that_come_again_and_again_leave_nothing_under_way(place: Place, tmp_path: Path) -> None:
    """The former one was never seen to end: nobody goes on looking out for that."""
    guest = Guest(tmp_path)
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        guest.boot(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        watching = []
        for _ in range(3):
            qubesd.events.clear()
            await guest.agent_is_replaced(ports[0], told=False)
            await qubesd.heard("channels-back")
            watching.append(sum("_watch_agent" in repr(task) for task in asyncio.all_tasks()))
        assert watching == [1, 1, 1]
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


def test_a_new_agent_keeps_no_file_of_the_former_ones(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        guest.boot(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        log = os.path.join(place.paths.log, "qrexec.log")
        for number in range(1, 4):
            reader, writer = await asyncio.open_unix_connection(guest.trigger_socket)
            writer.write(qrexec.trigger_service4("", "dom0", bytes(32), "test.Refused"))       # no policy daemon: it is logged
            await reader.read()
            writer.close()
            assert Path(log).read_bytes().count(b"\n") == number
            qubesd.events.clear()
            await guest.agent_is_replaced(ports[0])
            await qubesd.heard("channels-back")
            assert log not in map(os.path.realpath, Path("/proc/self/fd").iterdir())
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


def test_calls_that_wait_for_policy_when_the_agent_ends_are_over_and_hold_nothing(place: Place, tmp_path: Path) -> None:
    guest = Guest(tmp_path)
    ports: list[socket.socket] = []

    def boot(machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        guest.boot(machine, port)

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        gone = asyncio.Event()

        async def policy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            asked.set()
            await reader.read()
            gone.set()
            writer.close()

        asked = asyncio.Event()
        async with await asyncio.start_unix_server(policy, place.paths.socket("policy.sock")):
            reader, writer = await asyncio.open_unix_connection(guest.trigger_socket)
            writer.write(qrexec.trigger_service4("", "dom0", bytes(32), "test.Waits"))
            await asked.wait()
            await guest.agent_is_replaced(ports[0])
            await gone.wait()                            # nobody waits for that verdict any more
            await reader.read()
            writer.close()
        await qubesd.heard("channels-back")
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


# -- a hostile guest -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"\xff" * 64, agent.report("running") * 2, b"what?", b"failed".ljust(2000)])
def test_hostile_words_before_the_start_is_done(place: Place, said: bytes) -> None:
    def boot(_machine: FakeMachine, port: socket.socket) -> None:
        Side(port, GUEST).port.control(said)

    assert "agent report" in failing(place, boot)


@pytest.mark.parametrize("sent", [b"\xff" * 100, b"\x09" + bytes(7), b"\x03\x00\x01\x00\x63\x00\x00\x00x"])
def test_hostile_bytes_cost_the_guest_its_channels_and_the_host_can_still_kill_it(place: Place, sent: bytes) -> None:
    ports: list[socket.socket] = []

    def boot(_machine: FakeMachine, port: socket.socket) -> None:
        ports.append(port)
        side = Side(port, GUEST)
        made: dict[int, Recorder] = {}
        side.record_all(made)
        side.port.control(agent.report("running"))

    async def work(qubesd: Qubesd) -> None:
        await qubesd.heard("running")
        ports[0].send(sent)
        assert "protocol" in (await qubesd.heard("channels-lost"))["reason"]
        assert not os.path.lexists(os.path.join(place.paths.qubes, "qrexec.work"))
        assert (await qubesd.ask("pause"))["state"] == "paused"
        await qubesd.ask("kill")
        await qubesd.heard("stopped")

    place.run(boot, work)


@pytest.mark.parametrize(("untrusted", "text"), [
    (b"", ""), (b"  \r\n\x00", ""), (b"login: \x1b[0m\xff", "; last on its console: login: [0m"),
    (b"x" * 5000, "; last on its console: " + "x" * 600),
])
def test_console_tail(untrusted: bytes, text: str) -> None:
    assert console_tail(untrusted) == text
