"""What every implementation of `Machine` must do. Subclass it and provide a `make` fixture: MachineSpec -> Machine.

Nothing here needs a guest: the machines have no kernel, and are driven from outside only.
"""
from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from tests.patience import PATIENCE

from cloison.errors import MachineError
from cloison.guest.rpc import block
from cloison.hypervisor.base import Disk, DiskFile, Machine, MachineSpec, MachineState
from cloison.runtime import life
from cloison.storage import luks
from cloison.storage.qcow2_image import Encryption, create_overlay_fd
from cloison.wire import nbd

UUID = "00000000-0000-4000-8000-000000000001"
SIZE = 1 << 20
MEMORY = 32         # MiB
Make = Callable[[MachineSpec], Machine]


def overlay(folder: Path, size: int = SIZE) -> DiskFile:
    fd = os.open(folder, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    create_overlay_fd(fd, size)
    return DiskFile(fd, "qcow2", read_only=False)


def tiny(folder: Path, *, ram_fd: int | None = None, ram_shared: bool = False, state_fd: int | None = None,
         life_fd: int | None = None) -> MachineSpec:
    """32 MiB, an empty root, a private disk that forgets, no kernel."""
    disks = (Disk("root", SIZE, (overlay(folder),)), Disk("private", SIZE))
    return MachineSpec(uuid=UUID, memory=MEMORY, vcpus=1, accelerator="tcg", disks=disks, ram_fd=ram_fd, ram_shared=ram_shared,
                       state_fd=state_fd, life_fd=life_fd)


async def ended(stream: socket.socket) -> None:
    """Until the machine's end of the port is gone."""
    try:
        while await asyncio.get_running_loop().sock_recv(stream, 4096):
            pass
    except ConnectionResetError:
        pass


def started(machine: Machine, work: Callable[[socket.socket], Awaitable[None]]) -> None:
    """Start it, do the work, and leave nothing of it behind."""
    async def run() -> None:
        async with asyncio.timeout(PATIENCE):
            with await machine.start() as stream:
                try:
                    await work(stream)
                finally:
                    machine.kill()
                    await machine.wait()

    asyncio.run(run())


class NbdServer:
    """One disk, served by a thread at the other end of `far`."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self._fd, SIZE)
        self._near, self.far = socket.socketpair()
        self.ended = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with self._near:
            with contextlib.suppress(OSError):
                block.serve(self._fd, nbd.Server(SIZE, read_only=False), self._near.fileno(), self._near.fileno())
        os.close(self._fd)
        self.ended.set()


class MachineContract:
    def test_before_the_start(self, make: Make, tmp_path: Path) -> None:
        machine = make(MachineSpec(UUID, MEMORY, 1, "tcg", ()))

        async def run() -> None:
            assert machine.state is MachineState.MADE and machine.pid is None
            assert machine.error_text == "" and await machine.console() == b""
            machine.kill()
            calls = (machine.wait, machine.pause, machine.resume, machine.power_button, lambda: machine.announce_size("root", 1))
            for call in calls:
                with pytest.raises(MachineError):
                    await call()

        asyncio.run(run())

    def test_start_gives_a_port_and_takes_the_disks(self, make: Make, tmp_path: Path) -> None:
        spec = tiny(tmp_path)
        machine = make(spec)

        async def work(stream: socket.socket) -> None:
            assert machine.state is MachineState.RUNNING and machine.pid is not None
            with pytest.raises(BlockingIOError):
                stream.recv(1)
            machine.kill()
            await machine.wait()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(spec.disks[0].files[0].fd)

        started(machine, work)

    def test_start_takes_the_secret_of_an_encrypted_disk(self, make: Make, tmp_path: Path) -> None:
        secret = luks.new_secret()
        fd = os.open(tmp_path, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        create_overlay_fd(fd, SIZE, Encryption(luks.new_header(secret), luks.LENGTH))
        pipe, writing = os.pipe2(os.O_CLOEXEC)
        os.write(writing, secret)
        os.close(writing)
        disks = (Disk("root", SIZE, (overlay(tmp_path),)), Disk("volatile", SIZE, (DiskFile(fd, "qcow2", False, pipe),)))
        machine = make(MachineSpec(UUID, MEMORY, 1, "tcg", disks))

        async def work(_stream: socket.socket) -> None:
            await machine.announce_size("volatile", 2 * SIZE)
            assert machine.state is MachineState.RUNNING, machine.error_text
            machine.kill()
            await machine.wait()
            with pytest.raises(OSError, match="Bad file descriptor"):
                os.fstat(pipe)

        started(machine, work)

    def test_pause_and_resume_twice_each(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            for _ in range(2):
                await machine.pause()
                assert machine.state is MachineState.PAUSED
            for _ in range(2):
                await machine.resume()
                assert machine.state is MachineState.RUNNING

        started(machine, work)

    def test_a_stop_that_was_asked_for_is_not_its_own(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            own = asyncio.ensure_future(machine.stopped_itself())
            for _ in range(2):
                await machine.pause()
                await machine.resume()
            await machine.announce_size("root", 2 * SIZE)            # an answer that comes after what it may be told of those
            assert not own.done() and machine.state is MachineState.RUNNING
            own.cancel()

        started(machine, work)

    def test_kill_is_final(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(stream: socket.socket) -> None:
            waiting = [asyncio.ensure_future(machine.wait()) for _ in range(2)]
            machine.kill()
            machine.kill()
            assert await machine.wait() != 0
            assert await asyncio.gather(*waiting) == [await machine.wait()] * 2
            assert machine.state is MachineState.GONE
            await ended(stream)
            machine.kill()
            for call in (machine.pause, machine.resume, machine.power_button, lambda: machine.announce_size("root", SIZE)):
                with pytest.raises(MachineError):
                    await call()
            assert await machine.console() == b""

        started(machine, work)

    def test_cancelled_wait_leaves_the_machine_alone(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            waiting = asyncio.ensure_future(machine.wait())
            await machine.pause()
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await machine.resume()
            assert machine.state is MachineState.RUNNING

        started(machine, work)

    def test_paused_machine_can_be_killed(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            await machine.pause()
            machine.kill()
            await machine.wait()
            assert machine.state is MachineState.GONE

        started(machine, work)

    def test_life_is_held_to_the_end_and_not_longer(self, make: Make, tmp_path: Path) -> None:
        fd = life.take(str(tmp_path), UUID)
        machine = make(tiny(tmp_path, life_fd=fd))

        async def work(_stream: socket.socket) -> None:
            os.close(fd)
            await machine.pause()
            with pytest.raises(BlockingIOError):
                life.take(str(tmp_path), UUID)
            machine.kill()
            await machine.wait()
            await asyncio.to_thread(life.wait_gone, str(tmp_path), UUID)
            os.close(life.take(str(tmp_path), UUID))

        started(machine, work)

    def test_announced_size(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            await machine.announce_size("root", 2 * SIZE)
            with pytest.raises(MachineError):
                await machine.announce_size("nothing", SIZE)

        started(machine, work)

    def test_power_button_of_a_guest_that_ignores_it(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            await machine.power_button()
            await machine.power_button()
            await machine.pause()
            assert machine.state is MachineState.PAUSED

        started(machine, work)

    def test_an_attached_console_ends_with_the_machine(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            ours, theirs = socket.socketpair()
            ours.setblocking(False)
            with ours, theirs:
                await machine.attach_console(theirs)
                theirs.close()
                assert await machine.console() == b""
                ours.send(b"typed")
                machine.kill()
                await machine.wait()
                await ended(ours)

        started(machine, work)

    def test_a_disk_more_with_its_server_at_the_other_end_of_a_stream(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            server = NbdServer(tmp_path / "disk")
            with server.far:
                await machine.plug("xvdi", server.far, read_only=False)
                with pytest.raises(MachineError):
                    await machine.plug("xvdi", server.far, read_only=False)
            with pytest.raises(MachineError):
                await machine.unplug("xvdj")
            machine.kill()
            await machine.wait()
            assert await asyncio.to_thread(server.ended.wait, PATIENCE)
            with pytest.raises(MachineError):
                await machine.unplug("xvdi")

        started(machine, work)

    def test_lesson_44_a_bad_handshake_leaves_nothing_behind(self, make: Make, tmp_path: Path) -> None:
        machine = make(tiny(tmp_path))

        async def work(_stream: socket.socket) -> None:
            for said in (b"", b"NBDMAGI", b"\xff" * 4096):
                ours, theirs = socket.socketpair()
                with ours, theirs:
                    ours.sendall(said)
                    ours.shutdown(socket.SHUT_WR)
                    with pytest.raises(MachineError):
                        await machine.plug("xvdi", theirs, read_only=True)
            server = NbdServer(tmp_path / "disk")
            with server.far:
                await machine.plug("xvdi", server.far, read_only=False)
            machine.kill()
            assert await asyncio.to_thread(server.ended.wait, PATIENCE)

        started(machine, work)

    def test_save(self, make: Make, tmp_path: Path) -> None:
        ram = os.open(tmp_path / "ram", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(ram, MEMORY << 20)
        state = os.open(tmp_path / "state", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        machine = make(tiny(tmp_path, ram_fd=ram, ram_shared=True))

        async def work(_stream: socket.socket) -> None:
            await machine.save(state)
            assert machine.state is MachineState.PAUSED
            assert 0 < os.fstat(state).st_size < 1 << 20

        started(machine, work)
        os.close(state)
