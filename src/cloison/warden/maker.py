"""Makes a warm image: boots a guest that is nobody, has it get ready, and saves it. A process of its own, forked by the zygote."""
from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial

from cloison.errors import CloisonError, MachineError, PeerError
from cloison.hypervisor.base import MachineSpec
from cloison.hypervisor.qemu import warm
from cloison.hypervisor.qemu.driver import QemuMachine
from cloison.runtime import faults, life
from cloison.runtime.hangup import watch_hangup
from cloison.runtime.paths import Paths
from cloison.runtime.port import Port
from cloison.warden import disks
from cloison.warden.main import NOBODY, console_tail
from cloison.wire import agent
from cloison.wire.mux import HOST
from cloison.wire.warden import Launch, encode

QUIET_SECONDS = 5.0           # for what the boot still does after the agent is up; the image is better for it


async def make(paths: Paths, launch: Launch, control: socket.socket) -> None:
    """Answers on `control` with {"made": folder} or {"error": text}, and progress as {"progress": text} before."""
    def tell(**message: object) -> None:
        control.sendall(encode(message))

    task = asyncio.current_task()
    if task is not None:
        watch_hangup(control, partial(_cancel, task))   # nobody wants it any more
    try:
        name = warm.making(launch)
        life_fd = life.take(paths.qubes, name)
        work = os.path.join(paths.warm, name)
        try:
            os.mkdir(work, 0o700)
            made = await _make(paths, launch, work, life_fd, lambda text: tell(progress=text))
        finally:
            os.close(life_fd)
            await asyncio.to_thread(life.end, paths.qubes, name)   # of a sandbox killed while it was set up
            shutil.rmtree(work, ignore_errors=True)
            life.drop(paths.qubes, name)
        tell(made=made)
    except (CloisonError, OSError) as error:
        tell(error=str(error))


def _cancel(task: asyncio.Task[object]) -> None:
    task.cancel()


async def _make(paths: Paths, launch: Launch, work: str, life_fd: int, say: Callable[[str], None]) -> str:
    ram = os.open(os.path.join(work, warm.RAM), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.ftruncate(ram, launch.memory << 20)
    machine = QemuMachine(MachineSpec(
        uuid=NOBODY, memory=launch.memory, vcpus=launch.vcpus, accelerator=launch.accelerator,
        disks=disks.open_for_making(launch, os.path.join(work, warm.DISK)), kernel=launch.kernel.vmlinuz,
        initramfs=launch.kernel.initramfs, kernelopts=launch.kernelopts, ram_fd=ram, ram_shared=True, life_fd=life_fd))
    say("booting")
    faults.point("warm:boot")
    stream = await machine.start()
    guest = _Guest(stream)
    try:
        await guest.ask(agent.ping(), "pong", machine, launch.start_timeout)
        say("settling")
        await asyncio.sleep(QUIET_SECONDS)
        await guest.ask(agent.seal(), "sealed", machine, launch.start_timeout)
        say("saving")
        state = os.open(os.path.join(work, warm.STATE), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        await machine.save(state)
        os.close(state)
    finally:
        machine.kill()
        await machine.wait()
        stream.close()
    faults.point("warm:saved")
    return warm.finish(work, paths.warm, launch)


class _Guest:
    """The agent of a guest that is nobody: one question at a time."""

    def __init__(self, stream: socket.socket) -> None:
        self._answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._port = Port(stream.fileno(), HOST, on_control=self._report, on_open=lambda _c, _a: None, on_end=self._ended)

    async def ask(self, order: bytes, wanted: str, machine: QemuMachine, timeout: float) -> None:
        """Raises MachineError when another word comes, or none."""
        self._answer = asyncio.get_running_loop().create_future()
        self._port.control(order)
        try:
            word = await asyncio.wait_for(self._answer, timeout)
        except TimeoutError:
            raise MachineError(f"the guest did not get ready in {timeout} s{console_tail(await machine.console())}") from None
        if word != wanted:
            raise MachineError(f"the guest's agent said {word!r} instead of {wanted!r}; QEMU: {machine.error_text}")

    def _report(self, untrusted: bytes) -> None:
        if not self._answer.done():
            try:
                self._answer.set_result(agent.parse_report(untrusted).word)
            except PeerError as error:
                self._answer.set_result(str(error))

    def _ended(self, reason: str) -> None:
        if not self._answer.done():
            self._answer.set_result(reason)
