"""A Machine that is a QEMU process in its sandbox, driven over QMP.

The process is below bubblewrap's, our child, and pid 1 of its box; it dies with this one (sandbox.py). What it is handed is in
handing.py; after the spawn our copies are closed. QMP replies come from a process that a hostile guest may own: they are parsed
by the library, used as words and numbers only, and every wait for one ends when the process ends.
"""
from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import os
import signal
import socket
import subprocess
from collections.abc import Awaitable
from functools import partial
from typing import Any, TypeVar, cast

from qemu.qmp import EventListener, ExecuteError, QMPError

from cloison.errors import MachineError
from cloison.hypervisor import sandbox
from cloison.hypervisor.base import END_TIME, FULL, Machine, MachineSpec, MachineState
from cloison.hypervisor.qemu import argv, limits
from cloison.hypervisor.qemu.handing import Handed, hand_over
from cloison.hypervisor.qemu.hotplug import HotPlug
from cloison.hypervisor.qemu.monitor import Monitor
from cloison.runtime.programs import find

QEMU = "qemu-system-x86_64"
# Shared RAM stays in its file; and say how saving and loading go.
CAPABILITIES = [{"capability": "x-ignore-shared", "state": True}, {"capability": "events", "state": True}]
PORT_BUFFER = 1 << 20
EXPECTED_WARNING = "is not connected to host network"     # a qube's network card has no wire yet: true, and no failure's cause
BROKEN = (FULL, "internal-error", "guest-panicked")      # how QEMU stands after it has stopped by itself
T = TypeVar("T")


class QemuMachine(Machine):
    """See `Machine`. One object, one process."""

    def __init__(self, spec: MachineSpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None
        self._gone: asyncio.Future[int] | None = None
        self._qmp = Monitor(on_flood=self._flooded, on_end=self._hung_up)
        self._plugged = HotPlug(self._qmp, self._execute)
        self._stops = asyncio.Event()            # it has stopped, for whatever reason
        self._qmp.register_listener(EventListener("STOP", self._stopped))
        self._connecting: asyncio.Task[None] | None = None
        self._loaded: asyncio.Task[None] | None = None
        self._closing: asyncio.Task[None] | None = None
        self._state = MachineState.MADE
        self._errors = b""
        self._length = 0                         # bytes that a file of its may have
        self._why = ""                           # it was killed for this
        self._grace: asyncio.TimerHandle | None = None

    @property
    def state(self) -> MachineState:
        return self._state

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def start(self) -> socket.socket:
        with contextlib.ExitStack() as ours:
            monitor, channel = self._spawn(ours)
            self._connecting = asyncio.create_task(self._connect(monitor))
            self._connecting.add_done_callback(self._greeted)
            if self._spec.state_fd is not None:
                await self._load(self._spec.state_fd)
            ours.pop_all()
        return channel

    def _spawn(self, ours: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
        """Start the process: our ends of its monitor and of the agent's port, which `ours` closes if something fails."""
        with contextlib.ExitStack() as theirs:
            for fd in _files(self._spec):
                theirs.callback(os.close, fd)
            try:
                self._length = limits.longest(self._spec)
                handed = hand_over(self._spec, theirs)
            except OSError as error:
                raise MachineError(f"can't start QEMU: its files can't be handed over: {error.strerror}") from error
            monitor, qemu_monitor = _socketpair(ours, theirs)
            channel, qemu_channel = _socketpair(ours, theirs)
            for end in (channel, qemu_channel):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PORT_BUFFER)
            errors, qemu_errors = os.pipe()
            theirs.callback(os.close, qemu_errors)
            ends = (qemu_monitor.fileno(), qemu_channel.fileno())
            try:
                program = os.path.realpath(find(QEMU))
                self._process = sandbox.run(
                    self._argv(program, handed, *ends), files={program: program, **handed.files}, handed=[*ends, *handed.fds],
                    devices=["/dev/kvm"] if self._spec.accelerator == "kvm" else [], life_fd=self._spec.life_fd, stderr=qemu_errors,
                    confine=partial(limits.confine, self._spec.memory, self._length))
            except BaseException as error:
                os.close(errors)
                if isinstance(error, OSError):
                    raise MachineError(f"can't start QEMU: {error.strerror}") from error
                raise
        self._state = MachineState.RUNNING
        self._watch(errors)
        return monitor, channel

    async def pause(self) -> None:
        await self._execute("stop")
        self._state = MachineState.PAUSED

    async def resume(self) -> None:
        await self._execute("cont")
        self._state = MachineState.RUNNING

    async def power_button(self) -> None:
        await self._execute("system_powerdown")

    async def save(self, state_fd: int) -> None:
        # Not stopped first: QEMU stops it at the right moment itself, and the state then says "running" for whoever loads it.
        await self._connected()
        self._qmp.send_fd_scm(state_fd)
        await self._execute("getfd", {"fdname": "state"})
        with self._qmp.waiting_for("MIGRATION") as events:
            await self._execute("migrate", {"uri": "fd:state"})
            await self._unless_gone(_migrated(events))
        self._state = MachineState.PAUSED

    async def announce_size(self, role: str, size: int) -> None:
        await self._settled()
        if self.pid is not None and (length := limits.length_for(size)) > self._length:
            limits.let_grow(self.pid, length)
            self._length = length
        await self._execute("block_resize", {"node-name": role, "size": size})

    async def console(self) -> bytes:
        try:
            text = await asyncio.wait_for(
                self._execute("ringbuf-read", {"device": "console", "size": argv.CONSOLE_BYTES, "format": "base64"}), 5)
            return base64.b64decode(str(text))
        except (MachineError, TimeoutError, binascii.Error):
            return b""

    async def attach_console(self, stream: socket.socket) -> None:
        await self._connected()
        self._qmp.send_fd_scm(stream.fileno())
        await self._execute("getfd", {"fdname": "console"})
        socket_backend = {"addr": {"type": "fd", "data": {"str": "console"}}, "server": False}
        await self._execute("chardev-change", {"id": "console", "backend": {"type": "socket", "data": socket_backend}})

    async def plug(self, name: str, stream: socket.socket, *, read_only: bool) -> None:
        await self._settled()
        await self._plugged.plug(name, stream, read_only=read_only)

    async def unplug(self, name: str) -> None:
        await self._settled()
        await self._plugged.unplug(name)

    async def agent_left(self) -> None:
        with self._qmp.waiting_for("VSERPORT_CHANGE") as events:
            await self._connected()
            async for event in events:
                data = event.get("data")
                if not isinstance(data, dict) or not data.get("open"):
                    return

    def _stopped(self, _event: object) -> bool:
        """Noted, and never queued."""
        self._stops.set()
        return False

    async def stopped_itself(self) -> str:
        while True:
            await self._stops.wait()
            self._stops.clear()
            found = await self._execute("query-status")
            status = str(found.get("status")) if isinstance(found, dict) else ""
            if status in BROKEN:
                self._state = MachineState.PAUSED
                return status

    async def wait(self) -> int:
        if self._gone is None:
            raise MachineError("the machine was never started")
        status = await asyncio.shield(self._gone)
        if self._closing is not None:
            await asyncio.shield(self._closing)
        return status

    def kill(self) -> None:
        if self._process is not None and self._state is not MachineState.GONE:
            # The group, not the sandbox alone: until that has asked to die with its parent, QEMU would live on.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    @property
    def error_text(self) -> str:
        """Why it was killed, or what it wrote on its standard error, bounded: for logs, control characters replaced."""
        if self._why:
            return self._why
        lines = [line for line in self._errors.decode(errors="replace").splitlines() if EXPECTED_WARNING not in line]
        return " ".join("".join(c if c.isprintable() else " " for c in line) for line in lines).strip()

    async def _connect(self, monitor: socket.socket) -> None:
        await self._qmp.connect(monitor)
        if self.pid is not None:
            limits.hold_tasks(self.pid)
        await self._qmp.execute("migrate-set-capabilities", {"capabilities": CAPABILITIES})

    async def _load(self, state_fd: int) -> None:
        """Take up a warm image's device state; the guest runs on when QEMU has read it."""
        self._loaded = asyncio.create_task(self._until_migrated())
        self._loaded.add_done_callback(_retrieved)
        await self._execute("migrate-incoming", {"uri": f"fd:{state_fd}"})

    async def _until_migrated(self) -> None:
        with self._qmp.waiting_for("MIGRATION") as events:
            await _migrated(events)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _flooded(self) -> None:
        self._end("its monitor sent more than anybody had asked for")

    def _greeted(self, connecting: asyncio.Task[None]) -> None:
        if not connecting.cancelled() and connecting.exception() is not None:
            self._hung_up()

    def _hung_up(self) -> None:
        """No order reaches it any more: it is about to end, or is its guest's."""
        if self._grace is None and self._state is not MachineState.GONE:
            why = "it closed its monitor and did not end: it was killed"
            self._grace = asyncio.get_running_loop().call_later(END_TIME, self._end, why)

    def _end(self, why: str) -> None:
        self._why = self._why or why
        self.kill()

    def _argv(self, program: str, handed: Handed, monitor: int, channel: int) -> list[str]:
        spec = self._spec
        command = argv.command(argv.Settings(
            name="qube", uuid=spec.uuid, memory=spec.memory, vcpus=spec.vcpus, accelerator=spec.accelerator, drives=handed.drives,
            fd_monitor=monitor, fd_channel=channel, ram=handed.ram, incoming=spec.state_fd is not None, kernel=handed.kernel,
            initramfs=handed.initramfs, kernelopts=spec.kernelopts, program=program,
            code_cache=argv.code_cache(spec.memory) if spec.accelerator == "tcg" else 0,
        ))
        for fd in handed.sets:
            command += ["-add-fd", f"fd={fd},set={fd}"]
        return command

    def _watch(self, errors: int) -> None:
        """Learn of the process's end from the kernel, and keep the last it said."""
        assert self._process is not None
        loop = asyncio.get_running_loop()
        gone = self._gone = loop.create_future()
        process, pidfd = self._process, os.pidfd_open(self._process.pid)
        os.set_blocking(errors, False)

        def read_errors() -> None:
            data = _read_available(errors)
            self._errors = (self._errors + data)[-4096:]
            if not data:
                loop.remove_reader(errors)

        def ended() -> None:
            loop.remove_reader(pidfd)
            loop.remove_reader(errors)
            self._errors = (self._errors + _read_available(errors))[-4096:]
            os.close(pidfd)
            os.close(errors)
            self._state = MachineState.GONE
            if self._grace is not None:
                self._grace.cancel()
            gone.set_result(process.wait())
            self._closing = loop.create_task(self._hang_up())

        loop.add_reader(errors, read_errors)
        loop.add_reader(pidfd, ended)

    async def _hang_up(self) -> None:
        """Let go of the monitor; what it still has to say is that QEMU is gone.

        Its other end may live on all the same: under way in a socket that nobody reads. So nothing waits for it.
        """
        if self._loaded is not None:
            self._loaded.cancel()
        self._qmp.abort()
        if self._connecting is not None:
            await asyncio.wait([self._connecting], timeout=1.0)
            self._connecting.cancel()
        with contextlib.suppress(QMPError, OSError, EOFError):
            await self._qmp.disconnect()

    async def _connected(self) -> None:
        if self._connecting is None:
            raise MachineError("the machine was never started")
        await self._unless_gone(asyncio.shield(self._connecting))

    async def _settled(self) -> None:
        """QEMU keeps its hands off the disks until it has read the state it starts from."""
        await self._connected()
        if self._loaded is not None:
            await self._unless_gone(asyncio.shield(self._loaded))

    async def _execute(self, command: str, arguments: dict[str, Any] | None = None) -> object:
        await self._connected()
        return await self._unless_gone(self._qmp.execute(command, arguments))

    async def _unless_gone(self, work: Awaitable[T]) -> T:
        """Wait for QEMU's answer, or for its end. Raises MachineError for the latter and for a refusal."""
        assert self._gone is not None
        task = asyncio.ensure_future(work)
        waiters: set[asyncio.Future[Any]] = {task, self._gone}
        try:
            done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():          # nobody waits for it any more; it may still fail
                task.cancel()
                task.add_done_callback(_retrieved)
        if task not in done:
            raise MachineError(f"QEMU ended: {self.error_text or 'no reason given'}")
        try:
            return task.result()
        except (ExecuteError, QMPError, OSError) as error:
            raise MachineError(f"QEMU: {error}") from error
        except (LookupError, TypeError, ValueError, AttributeError) as error:       # of fields that are missing, or of another type
            raise MachineError("QEMU says what makes no sense") from error


def _files(spec: MachineSpec) -> list[int]:
    """Descriptors that the machine takes over."""
    files = [fd for disk in spec.disks for file in disk.files for fd in (file.fd, file.secret_fd)]
    return [fd for fd in (*files, spec.ram_fd, spec.state_fd) if fd is not None]


def _socketpair(ours: contextlib.ExitStack, theirs: contextlib.ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two ends, non-blocking on our side."""
    one, other = socket.socketpair()
    one.setblocking(False)
    return ours.enter_context(one), theirs.enter_context(other)


def _read_available(fd: int) -> bytes:
    try:
        return os.read(fd, 65536)
    except BlockingIOError:
        return b""


async def _migrated(events: EventListener) -> None:
    """Until saving or loading is done. Raises MachineError when it failed."""
    async for event in events:
        status = cast("dict[str, str]", event["data"])["status"]
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise MachineError("QEMU could not save or load the machine's state")


def _retrieved(task: asyncio.Future[Any]) -> None:
    """A failure is reported where it is awaited; here it only must not warn."""
    if not task.cancelled():
        task.exception()
