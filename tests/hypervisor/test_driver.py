"""A real QEMU in its sandbox, without a guest: the driver's promises, a save and a load, and how it ends."""
from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from qemu.qmp import EventListener
from tests.contracts.machine import MEMORY, SIZE, UUID, MachineContract, Make, overlay, started, tiny
from tests.descriptors import opened
from tests.patience import PATIENCE
from tests.runtime.ports import at_rest

from cloison.errors import HostError, MachineError
from cloison.hypervisor import sandbox
from cloison.hypervisor.base import Disk, DiskFile, MachineSpec, MachineState
from cloison.hypervisor.qemu import driver, limits, warm
from cloison.hypervisor.qemu.driver import QemuMachine


class TestQemuMachine(MachineContract):
    @pytest.fixture
    def make(self) -> Make:
        return QemuMachine


def saved(folder: Path) -> None:
    """`ram` and `state` of a tiny machine, as a warm image has them."""
    ram = os.open(folder / warm.RAM, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    os.ftruncate(ram, MEMORY << 20)
    state = os.open(folder / warm.STATE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    machine = QemuMachine(tiny(folder, ram_fd=ram, ram_shared=True))

    async def work(_stream: socket.socket) -> None:
        await machine.save(state)

    started(machine, work)
    os.close(state)


def loaded(folder: Path) -> QemuMachine:
    state = os.open(folder / warm.STATE, os.O_RDONLY | os.O_CLOEXEC)
    return QemuMachine(tiny(folder, ram_fd=warm.load_ram(str(folder)), state_fd=state))


def test_saved_machine_runs_again_more_than_once(tmp_path: Path) -> None:
    saved(tmp_path)
    before = (tmp_path / warm.RAM).read_bytes()
    for _ in range(2):
        machine = loaded(tmp_path)

        async def work(_stream: socket.socket, machine: QemuMachine = machine) -> None:
            await machine.announce_size("root", 2 << 20)
            await machine.pause()
            await machine.resume()
            assert machine.state is MachineState.RUNNING

        started(machine, work)
    assert (tmp_path / warm.RAM).read_bytes() == before


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_damaged_state_is_an_error_and_not_a_guest(tmp_path: Path, damage: str) -> None:
    saved(tmp_path)
    path = tmp_path / warm.STATE
    data = path.read_bytes()
    path.write_bytes({"cut": data[:len(data) // 2], "garbage": os.urandom(len(data)), "empty": b""}[damage])
    machine = loaded(tmp_path)

    async def work(_stream: socket.socket) -> None:
        with pytest.raises(MachineError):
            await machine.announce_size("root", 2 << 20)

    started(machine, work)


@pytest.mark.parametrize("kind", ["as we are", "by a mount"])
@pytest.mark.parametrize("name", ["layer.raw", "a b,c=d\\e\n'\"é"])
def test_a_shared_layer_reaches_qemu_so_that_nobody_can_write_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, name: str,
) -> None:
    """Looked at by who runs the tests; if that is root, no mode or owner stops him, but only the mount does."""
    if kind == "by a mount":
        monkeypatch.setattr(sandbox, "host_user", lambda: None)
    layer = tmp_path / name
    layer.write_bytes(b"template".ljust(SIZE))
    files = (DiskFile(os.open(layer, os.O_RDONLY | os.O_CLOEXEC), "raw", read_only=True, path=str(layer)), overlay(tmp_path))
    spec = MachineSpec(UUID, MEMORY, 1, "tcg", (Disk("root", SIZE, files),))
    machine = QemuMachine(spec)

    async def work(_stream: socket.socket) -> None:
        await machine.pause()
        qemu = below(below(machine.pid))
        held = [f"/proc/{qemu}/fd/{fd}" for fd in os.listdir(f"/proc/{qemu}/fd")]
        same = [link for link in held if os.path.exists(link) and os.path.samestat(os.stat(link), layer.stat())]
        assert same
        for link in same:
            with pytest.raises(OSError, match="Read-only file system"):
                os.open(link, os.O_RDWR)
        status = Path(f"/proc/{qemu}/status").read_text()
        assert "NSpid:" in status and status.split("NSpid:")[1].splitlines()[0].split()[1:] == ["2"]
        assert int(status.split("Seccomp_filters:")[1].split()[0]) >= 2, "the box's and QEMU's own"

    started(machine, work)
    assert layer.read_bytes().rstrip() == b"template"


def below(pid: int | None) -> int:
    """The one child of a process."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text())


def limit(machine: QemuMachine, name: str) -> list[str]:
    """A limit of its QEMU's, soft and hard; whoever may read it."""
    lines = Path(f"/proc/{below(below(machine.pid))}/limits").read_text().splitlines()
    return next(line.removeprefix(name).split()[:2] for line in lines if line.startswith(name))


@pytest.mark.parametrize("kind", ["as we are", "an ordinary user's"])
def test_its_threads_are_counted_whoever_it_belongs_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind != "as we are":
        monkeypatch.setattr(sandbox, "host_user", lambda: None)
    machine = QemuMachine(tiny(tmp_path))

    async def work(_stream: socket.socket) -> None:
        await machine.pause()
        assert limit(machine, "Max processes") == [str(limits.TASKS)] * 2

    started(machine, work)


def test_its_files_are_as_long_as_its_disks_need_and_grow_with_them(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    machine = QemuMachine(spec)

    def length() -> int:
        return int(limit(machine, "Max file size")[0])

    async def work(_stream: socket.socket) -> None:
        await machine.pause()
        assert length() < 200 << 20
        await machine.announce_size("root", 2 << 20)
        assert length() < 200 << 20, "there was room for that"
        await machine.announce_size("root", 1 << 30)
        assert 1 << 30 < length() < 1200 << 20

    started(machine, work)


def test_settings_that_qemu_refuses(tmp_path: Path) -> None:
    spec = tiny(tmp_path)
    machine = QemuMachine(MachineSpec("not a uuid, but text", spec.memory, 1, "tcg", spec.disks))

    async def work(_stream: socket.socket) -> None:
        with pytest.raises(MachineError, match="QEMU"):
            await machine.pause()
        assert await machine.wait() == 1
        assert "uuid" in machine.error_text.lower() and machine.error_text.isprintable()

    started(machine, work)


def test_program_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = tiny(tmp_path)
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setenv("PATH", str(tmp_path))
    machine = QemuMachine(spec)
    with pytest.raises(HostError, match="not installed"):
        asyncio.run(machine.start())
    assert len(os.listdir("/proc/self/fd")) == before - 1, "its disk is closed, and nothing else is left open"


def test_killed_parent_takes_its_machine_along(tmp_path: Path) -> None:
    """The machine holds the write end of a pipe: the pipe's end is the end of its last process."""
    read, write = os.pipe()
    parent = subprocess.Popen([sys.executable, __file__, str(tmp_path), str(write)], stdout=subprocess.PIPE, pass_fds=[write],
                              env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])})
    os.close(write)
    assert parent.stdout is not None
    assert parent.stdout.readline() == b"running\n"
    assert not select.select([read], [], [], 0)[0]
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    ready = select.select([read], [], [], PATIENCE)[0]
    assert ready and os.read(read, 1) == b""
    os.close(read)


def be_a_parent(folder: str, life_fd: int) -> None:
    """In a process of its own: a running machine, until somebody kills us."""
    async def run() -> None:
        machine = QemuMachine(tiny(Path(folder), life_fd=life_fd))
        with await machine.start():
            os.close(life_fd)
            await machine.pause()
            print("running", flush=True)
            await machine.wait()

    asyncio.run(run())


if __name__ == "__main__":
    be_a_parent(sys.argv[1], int(sys.argv[2]))


def test_only_a_stop_of_its_own_is_one_and_each_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU tells that it has stopped; why, it is asked."""
    states = iter(["paused", "finish-migrate", "io-error", "running", "internal-error"])
    asked: list[str] = []

    async def execute(_machine: QemuMachine, command: str, arguments: object = None) -> object:
        asked.append(command)
        return {"status": next(states)}

    async def run() -> None:
        machine = QemuMachine(MachineSpec("", 32, 1, "tcg", ()))
        found = []
        for expected in ("io-error", "internal-error"):
            waiting = asyncio.ensure_future(machine.stopped_itself())
            while not waiting.done():
                assert machine._stopped({"event": "STOP"}) is False, "it is queued nowhere"
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            found.append(waiting.result())
            assert found[-1] == expected and machine.state is MachineState.PAUSED
        assert set(asked) == {"query-status"} and len(asked) == 5

    monkeypatch.setattr(QemuMachine, "_execute", execute)
    asyncio.run(asyncio.wait_for(run(), 30))


# -- a QEMU that its guest owns ------------------------------------------------------------------------------------------------

# Its monitor is the first descriptor that it was handed, the agent's port the second. It greets as QEMU does, and then does what
# `then` says.
OWNED = """
import json, os, socket, sys, time
monitor, port = (socket.socket(fileno=int(fd)) for fd in sys.argv[1:])
def say(**message):
    monitor.sendall(json.dumps(message).encode() + b"\\r\\n")
def heard():
    said = b""
    while not said.strip():                # a descriptor comes with a space of its own
        said = monitor.recv(65536)
        if not said: sys.exit(9)
    return json.loads(said)
say(QMP={"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []})
for _ in range(2):
    say(**{"return": {}, **{key: value for key, value in heard().items() if key == "id"}})
"""
LIVES_ON = "\ntime.sleep(1000)"


@pytest.fixture
def owned(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., QemuMachine]:
    """A machine whose process is a Python program in QEMU's place."""
    def make(then: str, spec: MachineSpec | None = None) -> QemuMachine:
        def run(_argv: object, *, handed: Sequence[int], stderr: int, **_others: object) -> subprocess.Popen[bytes]:
            return subprocess.Popen([sys.executable, "-c", OWNED + then, *map(str, handed[:2])], pass_fds=list(handed[:2]),
                                    stderr=stderr, process_group=0)

        monkeypatch.setattr(sandbox, "run", run)
        return QemuMachine(spec or tiny(tmp_path))

    return make


@pytest.mark.parametrize("then", ["monitor.close()", "monitor.shutdown(socket.SHUT_RD)", "monitor.shutdown(socket.SHUT_WR)"])
def test_one_that_closes_its_monitor_and_lives_on_is_killed(
    owned: Callable[[str], QemuMachine], monkeypatch: pytest.MonkeyPatch, then: str,
) -> None:
    monkeypatch.setattr(driver, "END_TIME", 0.0)
    machine = owned(f"{then}\nport.send(b'done')\nos.write(2, b'x' * 10000){LIVES_ON}")

    async def work(stream: socket.socket) -> None:
        await asyncio.get_running_loop().sock_recv(stream, 4)         # it has done so, or is killed already
        with pytest.raises(MachineError):
            while True:
                await machine.pause()              # one that takes nothing more is noticed by who says something
        assert await machine.wait() == -signal.SIGKILL
        assert machine.error_text == "it closed its monitor and did not end: it was killed"

    started(machine, work)


def test_one_that_hangs_up_before_it_has_greeted_is_killed_too(
    owned: Callable[[str], QemuMachine], monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(driver, "END_TIME", 0.0)
    monkeypatch.setattr(sys.modules[__name__], "OWNED", OWNED.split("say(QMP", maxsplit=1)[0] + "say(no='greeting')\n")
    machine = owned(LIVES_ON)

    async def work(_stream: socket.socket) -> None:
        assert await machine.wait() == -signal.SIGKILL

    started(machine, work)


def test_an_order_that_is_given_up_leaves_no_task_that_waits_for_its_answer(owned: Callable[[str], QemuMachine]) -> None:
    machine = owned("heard(); port.send(b'!')" + LIVES_ON)

    async def work(stream: socket.socket) -> None:
        before = asyncio.all_tasks()
        order = asyncio.ensure_future(machine.pause())
        assert await asyncio.get_running_loop().sock_recv(stream, 1) == b"!"
        order.cancel()
        await asyncio.wait([order])
        for _ in range(10):                        # its cancellation goes through each call of it
            await asyncio.sleep(0)
        assert asyncio.all_tasks() <= before | {machine._qmp._reader_task, machine._qmp._writer_task}

    started(machine, work)


def test_one_that_ends_after_it_has_hung_up_is_not_killed(owned: Callable[[str], QemuMachine]) -> None:
    """An honest one: its disks are written out by then, and it is about to end."""
    machine = owned("monitor.close(); sys.exit(7)")

    async def work(_stream: socket.socket) -> None:
        assert await machine.wait() == 7 and machine.error_text == ""

    started(machine, work)


def test_one_that_floods_is_killed(owned: Callable[[str], QemuMachine]) -> None:
    """With events that are all valid: it stops and goes on, without end."""
    machine = owned("while True: say(event='STOP'); say(event='RESUME')")

    async def work(_stream: socket.socket) -> None:
        assert await machine.wait() == -signal.SIGKILL
        assert machine.error_text == "its monitor sent more than anybody had asked for"

    started(machine, work)


def test_one_that_answers_nothing_and_keeps_its_monitor_elsewhere_ends_when_it_is_killed(
    owned: Callable[[str], QemuMachine],
) -> None:
    """It sends its own end of the monitor to its host, through the agent's port, where nobody reads it: that end outlives it."""
    machine = owned("for fd in [int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) not in (0, 1, 2, monitor.fileno())]:\n"
                    "    try: socket.send_fds(socket.socket(fileno=fd), [b'x'], [monitor.fileno()])\n"
                    f"    except OSError: pass{LIVES_ON}")

    async def work(stream: socket.socket) -> None:
        await asyncio.get_running_loop().run_in_executor(None, select.select, [stream], [], [], PATIENCE)
        ordering = asyncio.create_task(machine._execute("stop", {"more than a socket holds": "x" * (4 << 20)}))
        for _ in range(10):
            await asyncio.sleep(0)
        machine.kill()
        with pytest.raises(MachineError):
            await ordering
        assert await machine.wait() == -signal.SIGKILL

    started(machine, work)


def test_answers_that_make_no_sense_are_no_stop_of_its_own(owned: Callable[[str], QemuMachine]) -> None:
    answers = ("[]", "7", "{}", "{'status': ['io-error']}", "{'status': 'io-error'}")
    machine = owned("".join(f"say(event='STOP'); say(**{{'return': {answer}, 'id': heard()['id']}})\n" for answer in answers)
                    + LIVES_ON)

    async def work(_stream: socket.socket) -> None:
        assert await machine.stopped_itself() == "io-error"
        assert machine.state is MachineState.PAUSED

    started(machine, work)


def test_an_event_without_what_belongs_to_it_is_an_error_and_not_a_wait_without_end(owned: Callable[[str], QemuMachine]) -> None:
    machine = owned(f"heard(); say(event='MIGRATION', data={{}}){LIVES_ON}")

    async def work(_stream: socket.socket) -> None:
        with machine._qmp.waiting_for("MIGRATION") as events:
            asking = asyncio.create_task(machine.pause())
            with pytest.raises(MachineError, match="no sense"):
                await machine._unless_gone(driver._migrated(events))
            machine.kill()
            with pytest.raises(MachineError):
                await asking

    started(machine, work)


@pytest.mark.parametrize(("statuses", "fails"), [
    (["setup", "active", "completed"], False), (["active", "failed"], True), (["cancelling", "cancelled"], True),
])
def test_saving_and_loading_are_over_when_qemu_says_how_they_went(statuses: list[str], fails: bool) -> None:
    async def events() -> AsyncIterator[dict[str, object]]:
        for status in statuses:
            yield {"event": "MIGRATION", "data": {"status": status}}
        raise AssertionError("it was over before")

    async def run() -> None:
        with pytest.raises(MachineError, match="save or load") if fails else contextlib.nullcontext():
            await driver._migrated(cast(EventListener, events()))

    asyncio.run(run())


# It takes up a state as QEMU does, when it is told to; then a byte on the agent's port has it say how that went.
LOADS = """
def answer():
    order = heard()
    say(**{"return": {}, "id": order["id"]})
    return order["execute"]
assert answer() == "migrate-incoming"
port.recv(1)
monitor.setblocking(False)
try:
    monitor.recv(1, socket.MSG_PEEK)
    port.send(b"early")
except BlockingIOError:
    port.send(b"quiet")
monitor.setblocking(True)
say(event="MIGRATION", data={"status": STATUS}, timestamp={"seconds": 1, "microseconds": 1})
"""


def from_state(owned: Callable[..., QemuMachine], tmp_path: Path, then: str) -> QemuMachine:
    """One that starts from a state, whatever that holds."""
    state, ram = (os.open(tmp_path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600) for _ in range(2))
    return owned(then, tiny(tmp_path, state_fd=state, ram_fd=ram))


async def turns() -> None:
    """Whatever is ready has its turn."""
    for _ in range(20):
        await asyncio.sleep(0)


DISK_ORDERS: list[Callable[[QemuMachine, socket.socket], Coroutine[Any, Any, None]]] = [
    lambda machine, _stream: machine.announce_size("root", SIZE),
    lambda machine, stream: machine.plug("disk", stream, read_only=True),
    lambda machine, _stream: machine.unplug("other"),
]


@pytest.mark.parametrize("order", DISK_ORDERS)
def test_disks_are_left_alone_until_the_state_is_read(
    owned: Callable[[str], QemuMachine], tmp_path: Path, order: Callable[[QemuMachine, socket.socket], Coroutine[Any, Any, None]],
) -> None:
    machine = from_state(owned, tmp_path, LOADS.replace("STATUS", "'completed'") + "while True: answer()")

    async def work(stream: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        with near, far:
            ordering = asyncio.ensure_future(order(machine, far))
            await turns()
            assert not ordering.done()
            stream.send(b"!")
            assert await loop.sock_recv(stream, 5) == b"quiet"
            with pytest.raises(MachineError, match="no disk other") if order is DISK_ORDERS[2] else contextlib.nullcontext():
                await ordering

    started(machine, work)


def test_a_state_that_can_not_be_read_fails_whoever_waits_for_it(owned: Callable[[str], QemuMachine], tmp_path: Path) -> None:
    machine = from_state(owned, tmp_path, LOADS.replace("STATUS", "'failed'") + LIVES_ON)

    async def work(stream: socket.socket) -> None:
        ordering = asyncio.ensure_future(machine.announce_size("root", SIZE))
        await turns()
        stream.send(b"!")
        with pytest.raises(MachineError, match="save or load"):
            await ordering

    started(machine, work)


@pytest.mark.parametrize("loading", [True, False])
def test_when_it_is_gone_nothing_of_it_is_under_way(owned: Callable[[str], QemuMachine], tmp_path: Path, loading: bool) -> None:
    """No task, and no timer that would kill a process of another's."""
    then = "say(**{'return': {}, 'id': heard()['id']})\nport.recv(1); monitor.close()"
    machine = from_state(owned, tmp_path, then) if loading else owned("port.recv(1)")

    async def run() -> None:
        before = asyncio.all_tasks()
        async with asyncio.timeout(PATIENCE):
            with await machine.start() as stream:
                if not loading:
                    await machine._connected()
                stream.send(b"!")
                assert await machine.wait() == 0 and machine.state is MachineState.GONE
                assert machine._grace is None or machine._grace.cancelled()
                await turns()
                assert asyncio.all_tasks() <= before
                for order in (machine.pause, machine.power_button):
                    with pytest.raises(MachineError):
                        await order()
                machine.kill()

    asyncio.run(run())


def test_one_that_says_no_more_on_its_standard_error_costs_nothing(owned: Callable[[str], QemuMachine]) -> None:
    """The last that it said is kept, and not all; what it said is text that a terminal can show."""
    machine = owned("os.write(2, b'x' * 9000 + b'\\x1b[31mlast \\xff\\n'); os.close(2); port.send(b'!')" + LIVES_ON)

    async def work(stream: socket.socket) -> None:
        assert await asyncio.get_running_loop().sock_recv(stream, 1) == b"!"
        await machine._connected()
        await at_rest()
        assert machine.error_text.startswith("xxx") and machine.error_text.endswith("x [31mlast \N{REPLACEMENT CHARACTER}")
        assert len(machine._errors) == 4096

    started(machine, work)


@pytest.mark.parametrize("fault", ["the sandbox", "its files", "its length", "a bug"])
def test_a_start_that_fails_closes_all_that_it_took_and_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise (KeyError("bug") if fault == "a bug" else OSError(errno.EMFILE, os.strerror(errno.EMFILE)))

    place, name = {"its files": (driver, "hand_over"), "its length": (limits, "longest")}.get(fault, (sandbox, "run"))
    monkeypatch.setattr(place, name, fail)
    before = set(opened())
    state, ram = (os.open(tmp_path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600) for _ in range(2))
    machine = QemuMachine(tiny(tmp_path, state_fd=state, ram_fd=ram))

    async def run() -> None:
        own = set(opened())
        with pytest.raises(KeyError if fault == "a bug" else MachineError, match="bug" if fault == "a bug" else "Too many open"):
            await machine.start()
        assert machine.state is MachineState.MADE and machine.pid is None
        assert not set(opened()) - own
        machine.kill()

    asyncio.run(run())
    assert set(opened()) <= before


def test_its_files_may_grow_when_a_disk_does_and_each_length_is_said_once(
    owned: Callable[[str], QemuMachine], monkeypatch: pytest.MonkeyPatch,
) -> None:
    machine = owned("while True: say(**{'return': {}, 'id': heard()['id']})")
    let: list[int] = []
    monkeypatch.setattr(limits, "let_grow", lambda _pid, length: let.append(length))

    async def work(_stream: socket.socket) -> None:
        for size in (SIZE, 1 << 30, 1 << 30, 1 << 29, (1 << 30) + 1, 1 << 31):
            await machine.announce_size("root", size)
        assert let == [limits.length_for(size) for size in (1 << 30, (1 << 30) + 1, 1 << 31)]

    started(machine, work)
