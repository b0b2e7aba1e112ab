"""How qubesd starts and steers machines: one warden process a qube, behind this interface.

The real ones are forked by the zygote and outlive qubesd; the fake lives in `fake_wardens.py`. Both pass the suite in
`tests/contracts/wardens.py`.

Events come by `on_event(uuid, event, detail)`, called in qubesd's loop: `running`, `halting`, `block-lost`, `qdb-change`,
`space-wanted` (it stands still: there is no space in `where`), `space-back` (it goes on, and is in that `state`), `broken`,
`silent` (its warden has not answered in time: nothing is known of it), `answers` (it does again; see `found`), `killed` (from
outside, since its warden did not end it), `ending` (what is left of it takes its time to end), `stopped`, `failed`. After `stopped`
or `failed` the qube's machine and warden are gone; no later event names that start.
"""
from __future__ import annotations

import abc
import socket
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from cloison.values import PowerState
from cloison.wire.blocks import Block
from cloison.wire.warden import Launch

OnEvent = Callable[[str, str, dict[str, Any]], None]
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Adopted:
    """A warden that was already running when qubesd came up."""

    uuid: str
    name: str
    xid: int
    state: PowerState
    commits: Mapping[str, str] = field(default_factory=dict)    # disk -> commit that it is a snapshot of
    blocks: tuple[Block, ...] = ()                              # attached devices of other qubes
    space: str = ""                                             # the folder without space that it waits for, if it does
    note: str = ""                                              # what its agent said is wrong in there; untrusted
    unknown: bool = False                                       # nothing but the uuid is known of it, and the xid, if that is not 0


@dataclass(frozen=True)
class Usage:
    """What a running qube uses now."""

    memory: int         # KiB
    cpu_time: int       # ns since its start


class Wardens(abc.ABC):
    """Every method raises MachineError (one sentence) and nothing else; a uuid without a warden is such an error."""

    on_event: OnEvent

    @abc.abstractmethod
    async def adopt(self) -> list[Adopted]:
        """Find the wardens that run and listen to their events. Called once, before anything else.

        Those that don't answer are waited for side by side, for seconds, and are there as `unknown`.
        """

    @abc.abstractmethod
    def found(self, uuid: str) -> Adopted:
        """One that answers, as it said when it did last."""

    @abc.abstractmethod
    async def start(self, launch: Launch, lease: socket.socket | None = None) -> str:
        """Start a machine; return when its agent has answered RUNNING: `warm` or `cold`, as it went in the end.

        On error nothing of it runs and no event follows. `lease`: the warden gets a duplicate and kills the qube when its
        peer hangs up; the caller keeps and closes its own. From the moment the warden holds it the lease needs no qubesd.
        """

    @abc.abstractmethod
    async def pause(self, uuid: str) -> None: ...

    @abc.abstractmethod
    async def unpause(self, uuid: str) -> None:
        """Raises MachineError for one that waits for disk space while there is none."""

    @abc.abstractmethod
    async def shutdown(self, uuid: str) -> None:
        """Ask the guest to power off; return when it was asked. `stopped` follows when (and if) it did.

        Raises MachineError for one that waits for disk space.
        """

    @abc.abstractmethod
    async def kill(self, uuid: str) -> None:
        """End the machine at once, from outside if its warden does not; `stopped` has been delivered when this returns."""

    @abc.abstractmethod
    async def qdb_write(self, uuid: str, entries: Mapping[str, str | None]) -> None:
        """Change entries of a running qube's QubesDB; None removes one."""

    @abc.abstractmethod
    async def qdb_read(self, uuid: str, prefix: str) -> dict[str, bytes]:
        """Entries of a running qube's QubesDB whose path begins so. The guest may have written them: untrusted."""

    @abc.abstractmethod
    async def console(self, uuid: str) -> str:
        """Path of a terminal of this host that is the running qube's serial console."""

    @abc.abstractmethod
    async def resize(self, uuid: str, role: str, size: int) -> None:
        """Make a disk of a running machine `size` bytes large. Its guest learns of it a moment later."""

    @abc.abstractmethod
    async def attach(self, uuid: str, block: Block) -> None:
        """Plug a device of another running qube into a running one. On error nothing of it is left.

        A device whose own qube goes is lost: `block-lost`, with its `name`, tells so, and no detach is needed.
        """

    @abc.abstractmethod
    async def detach(self, uuid: str, name: str) -> None:
        """Take it back; it is out of the qube's reach when this returns, whatever the qube does."""

    @abc.abstractmethod
    async def service(self, uuid: str, service: str, data: bytes) -> None:
        """Run a qrexec service in a running qube as root, with this input; return when it has succeeded.

        Its output is thrown away; the end of what it complained about is in the MachineError.
        """

    @abc.abstractmethod
    async def ensure_warm(self, launch: Launch, progress: Progress, *, ahead: bool = False) -> str | None:
        """Folder of the warm image for a launch of this shape, made now if missing. None: it can't be, start cold.

        `ahead`: no qube waits for it. When the last one that waits is cancelled, the making is given up, whoever else wanted it
        ahead, and nothing of it runs when this returns.
        """

    @abc.abstractmethod
    async def forget_warm(self, commits: Collection[str]) -> None:
        """Drop every warm image made from a root commit of these ids that no machine uses."""

    @abc.abstractmethod
    def usage(self, uuid: str) -> Usage:
        """Cheap, never waits; zeros where it is not known."""

    @abc.abstractmethod
    def warm_images(self) -> list[str]:
        """Keys of the warm images that exist."""

    @abc.abstractmethod
    def running(self) -> list[str]:
        """Uuids of the qubes that have a warden."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Let go of wardens and zygote without touching a machine."""
