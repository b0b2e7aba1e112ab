"""Makes a warm image: boots a guest that is nobody, has it get ready, and saves it. A process of its own, forked by the zygote."""
from __future__ import annotations

import asyncio
import os
import shutil
import socket
from collections.abc import Callable
from functools import partial

from cloison.errors import CloisonError, MachineError, PeerError
from cloison.hypervisor.base import FULL, Machine, MachineSpec
from cloison.hypervisor.qemu import warm
from cloison.hypervisor.qemu.driver import QemuMachine
from cloison.runtime import faults, life
from cloison.runtime.paths import Paths
from cloison.runtime.port import Port
from cloison.warden import disks
from cloison.warden.starting import NOBODY, console_tail
from cloison.wire import agent
from cloison.wire.mux import HOST
from cloison.wire.warden import Launch, encode


async def make(
    paths: Paths, launch: Launch, control: socket.socket, make_machine: Callable[[MachineSpec], Machine] = QemuMachine,
) -> None:
    """Answers on `control` with {"made": folder} or {"error": text}, and progress as {"progress": text} before.

    Nobody wants it any more when the other end closes or half-closes: it ends then, and hangs up when nothing of it is left.
    """
    def tell(**message: object) -> None:
        control.sendall(encode(message))

    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    assert task is not None
    loop.add_reader(control, partial(_cancel, loop, control, task))
    try:
        name = warm.making(launch)
        life_fd = life.take(paths.qubes, name)
        work = os.path.join(paths.warm, name)
        try:
            os.mkdir(work, 0o700)
            made = await _Maker(paths, launch, work, lambda text: tell(progress=text)).run(life_fd, make_machine)
        finally:
            os.close(life_fd)
            await asyncio.to_thread(life.end, paths.qubes, name)   # of a sandbox killed while it was set up
            shutil.rmtree(work, ignore_errors=True)
            life.drop(paths.qubes, name)
        tell(made=made)
    except (CloisonError, OSError) as error:
        tell(error=str(error))
    except asyncio.CancelledError:
        pass                            # nothing is left, and nobody is told
    finally:
        loop.remove_reader(control)


def _cancel(loop: asyncio.AbstractEventLoop, control: socket.socket, task: asyncio.Task[object]) -> None:
    loop.remove_reader(control)
    task.cancel()


class _Maker:
    """One image in the making, in the work folder `work`."""

    def __init__(self, paths: Paths, launch: Launch, work: str, say: Callable[[str], None]) -> None:
        self._paths, self._launch, self._work, self._say = paths, launch, work, say

    async def run(self, life_fd: int, make_machine: Callable[[MachineSpec], Machine]) -> str:
        """The finished image's folder. Raises MachineError, OSError."""
        machine = make_machine(self._spec(life_fd))
        self._say("booting")
        faults.point("warm:boot")
        stream = await machine.start()
        saving = asyncio.ensure_future(self._until_saved(machine, _Guest(stream)))
        stopped = asyncio.ensure_future(machine.stopped_itself())
        try:
            await asyncio.wait({saving, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if not saving.done():
                why = f"{self._paths.warm} is full" if stopped.result() == FULL else f"its machine stopped: {stopped.result()}"
                raise MachineError(f"no warm image was made: {why}")
            saving.result()
        finally:
            saving.cancel()
            stopped.cancel()
            await asyncio.gather(saving, stopped, return_exceptions=True)
            machine.kill()
            await machine.wait()
            stream.close()
        faults.point("warm:saved")
        return warm.finish(self._work, self._paths.warm, self._launch)      # not in a thread: nothing may remove it meanwhile

    def _spec(self, life_fd: int) -> MachineSpec:
        launch = self._launch
        ram = self._new_file(warm.RAM)
        os.ftruncate(ram, launch.memory << 20)
        return MachineSpec(
            uuid=NOBODY, memory=launch.memory, vcpus=launch.vcpus, accelerator=launch.accelerator,
            disks=disks.open_for_making(launch, os.path.join(self._work, warm.DISK)), kernel=launch.kernel.vmlinuz,
            initramfs=launch.kernel.initramfs, kernelopts=launch.kernelopts, ram_fd=ram, ram_shared=True, life_fd=life_fd)

    def _new_file(self, name: str) -> int:
        return os.open(os.path.join(self._work, name), os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    async def _until_saved(self, machine: Machine, guest: _Guest) -> None:
        timeout = self._launch.start_timeout
        await guest.ask(agent.ping(), "pong", machine, timeout)
        self._say("settling")            # the agent waits for the boot's end
        await guest.ask(agent.seal(), "sealed", machine, timeout)
        self._say("saving")
        state = self._new_file(warm.STATE)
        try:
            await machine.save(state)
        finally:
            os.close(state)


class _Guest:
    """The agent of a guest that is nobody: one question at a time."""

    def __init__(self, stream: socket.socket) -> None:
        self._answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._port = Port(stream.fileno(), HOST, on_control=self._report, on_open=lambda _c, _a: None, on_end=self._ended)

    async def ask(self, order: bytes, wanted: str, machine: Machine, timeout: float) -> None:
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
