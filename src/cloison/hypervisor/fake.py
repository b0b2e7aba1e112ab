"""A machine without QEMU, for tests: a `boot` function plays the guest, at its own end of the agent port.

It keeps every promise of `Machine` (tests/contracts/machine.py) and takes the descriptors it is given, as QEMU does.
"""
from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Callable

from cloison.errors import MachineError
from cloison.hypervisor.base import FULL, Machine, MachineSpec, MachineState

SAVED = b"a fake machine's device state"
GREETING = b"NBDMAGICIHAVEOPT\0\3"
ASK_FOR_IT = b"\0\0\0\3" + b"IHAVEOPT" + bytes((0, 0, 0, 1)) + bytes(4)          # flags, and the export without a name
EXPORT = 10                 # bytes of the answer: size, flags
Boot = Callable[["FakeMachine", socket.socket], None]


def silent(_machine: FakeMachine, _port: socket.socket) -> None:
    """A guest that never says anything."""


class FakeMachine(Machine):
    """`boot(machine, port)` is called when the machine starts; the port is closed when it ends."""

    def __init__(self, spec: MachineSpec, boot: Boot = silent) -> None:
        self.spec = spec
        self.sizes: dict[str, int] = {}                       # as announced
        self.on_power_button: Callable[[], None] = lambda: None
        self.on_end: Callable[[], None] = lambda: None        # the guest is about to be no more
        self._boot = boot
        self._state = MachineState.MADE
        self._gone: asyncio.Future[int] | None = None
        self._guest: socket.socket | None = None
        self._fds: list[int] = []
        self._console = b""
        self.serial: socket.socket | None = None              # the console, once it is attached
        self.plugged: dict[str, socket.socket] = {}           # disks, by name, with the stream of each
        self.clings = False                                   # the guest lets go of no disk
        self.let_go = asyncio.Event()                         # set it to have the guest let go after all
        self.full = False                                     # its disks have no space: it stops by itself, when `write` is called
        self._stopped = asyncio.Event()
        self._why = FULL
        self.left = asyncio.Event()                           # set it to have the guest's agent be gone
        self._error = ""

    # -- for the guest ---------------------------------------------------------------------------------------------------

    def end(self, status: int = 0, error: str = "") -> None:
        """The machine's process ends: the guest powered off, or something broke."""
        if self._gone is None or self._guest is None or self._state is MachineState.GONE:
            return
        self._state, self._error = MachineState.GONE, error
        self.on_end()
        self._guest.close()
        for stream in (self.serial, *self.plugged.values()):
            if stream is not None:
                stream.close()
        for fd in self._fds:
            os.close(fd)
        self._gone.set_result(status)

    def write(self, why: str = FULL) -> None:
        """The guest writes to a disk: there is no space for it."""
        self.full, self._why, self._state = True, why, MachineState.PAUSED
        self._stopped.set()

    def print(self, text: bytes) -> None:
        """On the serial console."""
        if self.serial is not None:
            self.serial.sendall(text)
        else:
            self._console += text

    # -- Machine ---------------------------------------------------------------------------------------------------------

    @property
    def state(self) -> MachineState:
        return self._state

    @property
    def pid(self) -> int | None:
        return None if self._gone is None else os.getpid()

    @property
    def error_text(self) -> str:
        return self._error

    async def start(self) -> socket.socket:
        host, self._guest = socket.socketpair()
        host.setblocking(False)
        self._guest.setblocking(False)
        spec = self.spec
        files = [fd for disk in spec.disks for file in disk.files for fd in (file.fd, file.secret_fd)]
        self._fds = [fd for fd in (*files, spec.ram_fd, spec.state_fd) if fd is not None]
        if spec.life_fd is not None:
            self._fds.append(os.dup(spec.life_fd))
        self._gone = asyncio.get_running_loop().create_future()
        self._state = MachineState.RUNNING
        if spec.state_fd is not None and os.read(spec.state_fd, len(SAVED) + 1) != SAVED:
            self.end(1, "this is no machine's state")
        else:
            self._boot(self, self._guest)
        return host

    async def pause(self) -> None:
        self._up()
        self._state = MachineState.PAUSED

    async def resume(self) -> None:
        self._up()
        self._state = MachineState.RUNNING
        if self.full:
            self.write()

    async def power_button(self) -> None:
        self._up()
        self.on_power_button()

    async def save(self, state_fd: int) -> None:
        self._up()
        os.write(state_fd, SAVED)
        self._state = MachineState.PAUSED

    async def announce_size(self, role: str, size: int) -> None:
        self._up()
        if role not in (disk.role for disk in self.spec.disks):
            raise MachineError(f"no disk {role!r}")
        self.sizes[role] = size

    async def console(self) -> bytes:
        return self._console if self._state in (MachineState.RUNNING, MachineState.PAUSED) else b""

    async def attach_console(self, stream: socket.socket) -> None:
        self._up()
        self._console = b""
        self.serial = stream.dup()

    async def plug(self, name: str, stream: socket.socket, *, read_only: bool) -> None:
        self._up()
        if name in self.plugged:
            raise MachineError(f"{name} is taken")
        own = stream.dup()
        own.setblocking(False)
        if not await _shakes_hands(own):
            own.close()
            raise MachineError("a bad handshake")
        self.plugged[name] = own

    async def unplug(self, name: str) -> None:
        self._up()
        if name not in self.plugged:
            raise MachineError(f"there is no disk {name}")
        if self.clings:
            await self.let_go.wait()
        self.plugged.pop(name).close()

    async def agent_left(self) -> None:
        await self.left.wait()

    async def stopped_itself(self) -> str:
        await self._stopped.wait()
        self._stopped.clear()
        return self._why

    async def wait(self) -> int:
        if self._gone is None:
            raise MachineError("the machine was never started")
        return await asyncio.shield(self._gone)

    def kill(self) -> None:
        self.end(-signal.SIGKILL)

    def _up(self) -> None:
        if self._state is MachineState.MADE:
            raise MachineError("the machine was never started")
        if self._state is MachineState.GONE:
            raise MachineError(f"the machine ended: {self._error or 'no reason given'}")


async def _shakes_hands(stream: socket.socket) -> bool:
    """As QEMU does with a server of a block device: False if it says something else, hangs up, or has gone without reading all."""
    loop = asyncio.get_running_loop()
    try:
        if await loop.sock_recv(stream, len(GREETING)) != GREETING:
            return False
        await loop.sock_sendall(stream, ASK_FOR_IT)
        return len(await loop.sock_recv(stream, EXPORT)) == EXPORT
    except OSError:
        return False
