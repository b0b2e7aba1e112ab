"""A real QEMU in its sandbox, without a guest: the driver's promises, a save and a load, and how it ends."""
from __future__ import annotations

import asyncio
import dataclasses
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests.contracts.machine import MEMORY, SIZE, MachineContract, Make, overlay, started, tiny
from tests.patience import PATIENCE

from cloison.errors import HostError, MachineError
from cloison.hypervisor import sandbox
from cloison.hypervisor.base import Disk, DiskFile, MachineSpec, MachineState
from cloison.hypervisor.qemu import warm
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
    machine = QemuMachine(dataclasses.replace(tiny(tmp_path), disks=(Disk("root", SIZE, files),)))

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
