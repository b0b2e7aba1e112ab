"""A machine: one virtual computer, as its warden sees it. What the machine is for is not known here."""
from __future__ import annotations

import abc
import enum
import socket
from dataclasses import dataclass

# s that a machine which has hung up on its host may take until it is killed: an honest one has written out its disks by then,
# and is about to end; one that its guest owns may hang up and live on, and no one could say what it does.
END_TIME = 10.0
FULL = "io-error"       # why a machine stopped: QEMU's word, which is said of a full disk only (argv.py: werror)


class MachineState(enum.Enum):
    """made -> running <-> paused -> gone. `gone` is final."""

    MADE = "made"
    RUNNING = "running"
    PAUSED = "paused"
    GONE = "gone"


@dataclass(frozen=True)
class DiskFile:
    """One open file of a disk. The machine takes its descriptors and closes them.

    `path`: of a read-only one, which may be opened by its name. `secret_fd`: for an encrypted qcow2, a pipe that holds the text
    which opens it, its other end closed.
    """

    fd: int
    format: str
    read_only: bool
    secret_fd: int | None = None
    path: str = ""


@dataclass(frozen=True)
class Disk:
    """A virtio disk: `files` bottom first; none is an empty disk of `size` bytes that forgets."""

    role: str
    size: int
    files: tuple[DiskFile, ...] = ()


@dataclass(frozen=True)
class MachineSpec:
    """What a machine is made of. `ram_fd` and `state_fd` belong to a warm image; without them it boots `kernel`."""

    uuid: str
    memory: int                      # MiB
    vcpus: int
    accelerator: str                 # kvm or tcg
    disks: tuple[Disk, ...]
    kernel: str = ""                 # host paths
    initramfs: str = ""
    kernelopts: str = ""
    ram_fd: int | None = None        # file of exactly `memory` bytes
    ram_shared: bool = False         # True while a warm image is being made
    state_fd: int | None = None      # device state to load
    life_fd: int | None = None       # held open while anything of the machine lives, so that a lock on it tells


class Machine(abc.ABC):
    """Promises: `start` returns a stream to the guest's agent port; `wait` returns when the machine can change nothing any more
    (its last process may be a moment behind: who minds that waits for the lock on `life_fd`); `kill` always works and needs no
    guest's consent; every method but `start` may be called at any time and twice. A machine that hangs up on its host's orders, or
floods it, is killed.

    Raises MachineError with a sentence, and the console's last lines where there are any.
    """

    @abc.abstractmethod
    async def start(self) -> socket.socket:
        """Bring it up; the host's end of the agent port, non-blocking."""

    @abc.abstractmethod
    async def pause(self) -> None: ...

    @abc.abstractmethod
    async def resume(self) -> None: ...

    @abc.abstractmethod
    async def power_button(self) -> None:
        """Ask the guest to shut down. It may ignore that."""

    @abc.abstractmethod
    async def save(self, state_fd: int) -> None:
        """Stop it for good and write its device state; RAM stays in its file."""

    @abc.abstractmethod
    async def announce_size(self, role: str, size: int) -> None:
        """Tell the guest how many bytes a disk has: one restored from a snapshot, or one that has grown."""

    @abc.abstractmethod
    async def console(self) -> bytes:
        """The last of what the guest wrote on its serial console: untrusted."""

    @abc.abstractmethod
    async def attach_console(self, stream: socket.socket) -> None:
        """From now on the serial console is this stream, which gets a copy of its own; `console` has nothing any more."""

    @abc.abstractmethod
    async def plug(self, name: str, stream: socket.socket, *, read_only: bool) -> None:
        """Add a disk whose content an NBD server at the stream's far end has; the machine gets a copy of the stream.

        `name`: lower-case letters, at most 20; the guest sees it as the disk's serial number. Returns when the guest has been
        told. While the far end keeps the handshake waiting the whole machine may stand still: a caller who shuts the stream
        down ends that. Raises MachineError for a name that is taken, for want of a slot, and for a bad handshake.
        """

    @abc.abstractmethod
    async def unplug(self, name: str) -> None:
        """Take a disk away; returns when the guest has let go of it, which may be never. Cancelled, the request stands."""

    @abc.abstractmethod
    async def agent_left(self) -> None:
        """Returns when the guest has closed its agent port, next time it does: its agent has ended. Maybe never."""

    @abc.abstractmethod
    async def stopped_itself(self) -> str:
        """Returns when the machine has stopped without being told to, next time it does. Maybe never.

        FULL: what it writes fits into no file any more; `resume` has it try again, and it stops again if that fails. Any other
        word: it can't go on.
        """

    @abc.abstractmethod
    async def wait(self) -> int:
        """Exit status of the machine's process, once it is gone."""

    @abc.abstractmethod
    def kill(self) -> None: ...

    @property
    @abc.abstractmethod
    def state(self) -> MachineState: ...

    @property
    @abc.abstractmethod
    def error_text(self) -> str:
        """Why it ended, in the hypervisor's words; may be empty."""

    @property
    @abc.abstractmethod
    def pid(self) -> int | None:
        """The machine's process on the host, for statistics."""
