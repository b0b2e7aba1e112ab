"""What the calls need from the daemon. `daemon/app.py` is the one implementation; tests use it with fake wardens and pools.

Locks: whoever changes a qube's machine or volumes holds `lock(qube)`. Model changes are made in `transaction()`, which never
awaits: on leaving, the store has them; on an exception, they never were.
"""
from __future__ import annotations

import abc
import asyncio
import socket
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from cloison.devicetext import Device
from cloison.errors import CloisonError
from cloison.model.devices import Assignment
from cloison.model.domains import Qube, System
from cloison.model.exposed import Exposed
from cloison.model.volumes import Volume
from cloison.storage.base import Pool, VolumeConfig

P = ParamSpec("P")
T = TypeVar("T")
Send = Callable[[str, str, tuple[tuple[str, str], ...]], None]


class CallerGone(CloisonError):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class NewQube:
    """An order for a qube, its words checked; whether names are taken or known is checked when it is made."""

    klass: str
    name: str
    label: str
    template: str | None = None
    pool: str | None = None
    pools: Mapping[str, str] = field(default_factory=dict)      # volume -> pool
    unfinished: str = ""                                        # the tool that has more to say to it before it may start


@dataclass(frozen=True)
class Driver:
    """A kind of pool: the options it takes, those it needs, and how to open one."""

    options: tuple[str, ...]
    required: tuple[str, ...]
    open: Callable[[str, Mapping[str, str]], Pool]


class Qubesd(abc.ABC):
    """The live system."""

    system: System
    drivers: Mapping[str, Driver]
    tokens: dict[str, tuple[str, str]]          # clone token -> (uuid of a qube, volume)
    cache: dict[str, str]                       # texts made of the model; emptied when what policy asks about changes
    asleep: set[str]                            # uuids of the qubes that were told to sleep one by one
    suspended: set[str]                         # uuids of the qubes that the host's suspend has paused
    imports: dict[tuple[str, str], int]         # (qube, volume) being imported -> size in bytes
    changing_pools: asyncio.Lock                # held by whoever adds or removes one

    # -- model
    @abc.abstractmethod
    def transaction(self, done: str = "") -> AbstractContextManager[None]:
        """`done`: what has happened already and can't be taken back, as a sentence's beginning. Then a store that can't be written
        undoes nothing: the model stays true, the rows of volumes are written with the next change, and StoreError says all this.
        """

    @abc.abstractmethod
    def check_store(self) -> None:
        """Raises StoreError if the store can't be written now: before what can't be taken back."""

    @abc.abstractmethod
    def lock(self, qube: Qube) -> asyncio.Lock: ...

    @abc.abstractmethod
    def allows(self, source: Qube, method: str, target: Qube) -> bool:
        """Whether policy allows, without asking, this call of this source: for filtering what a qube may see."""

    @abc.abstractmethod
    def system_info(self) -> str:
        """The facts every policy decision needs, kept until one of them changes."""

    @abc.abstractmethod
    def listen(self, source: Qube, subject: str | None, send: Send) -> Callable[[], None]:
        """Get events of one qube (None: of all and the system); returns what ends it."""

    # -- life of qubes
    @abc.abstractmethod
    async def create(self, order: NewQube, source: Qube) -> Qube: ...

    @abc.abstractmethod
    async def create_disposable(self, template: Qube, source: Qube | None) -> Qube:
        """Made halted. Without a source it is for nobody yet, and has the template's network."""

    @abc.abstractmethod
    async def take_preloaded(self, template: Qube, source: Qube) -> Qube | None:
        """A disposable that was made ahead, running now; None if none is ready for this source."""

    @abc.abstractmethod
    def preload(self, template: Qube) -> None:
        """Look after the disposables of this template that are to wait, in the background."""

    @abc.abstractmethod
    async def drop_preloaded(self, reason: str) -> None:
        """Remove all disposables that wait."""

    @abc.abstractmethod
    async def remove(self, qube: Qube) -> None: ...

    @abc.abstractmethod
    async def discard(self, qube: Qube) -> None:
        """Remove a disposable that never ran, whatever is left of it."""

    @abc.abstractmethod
    async def start(self, qube: Qube, lease: socket.socket | None = None) -> str:
        """Returns `warm` or `cold`."""

    @abc.abstractmethod
    async def shutdown(self, qube: Qube, *, force: bool, wait: bool) -> None: ...

    @abc.abstractmethod
    async def kill(self, qube: Qube) -> None: ...

    @abc.abstractmethod
    async def pause(self, qube: Qube) -> None: ...

    @abc.abstractmethod
    async def unpause(self, qube: Qube) -> None: ...

    @abc.abstractmethod
    def usage(self, qube: Qube) -> tuple[int, int]:
        """Memory in KiB and processor time in ns of a qube that runs."""

    @abc.abstractmethod
    async def console(self, qube: Qube) -> str:
        """Path of the terminal that is a running qube's console. Raises MachineError."""

    @abc.abstractmethod
    async def qdb_read(self, qube: Qube, prefix: str) -> dict[str, bytes]:
        """Entries of a running qube's QubesDB, by path: untrusted. Raises MachineError."""

    @abc.abstractmethod
    async def exposed(self, qube: Qube, devclass: str) -> list[Exposed]:
        """Devices of that class that the qube has on its ports now, in order of port."""

    @abc.abstractmethod
    async def attached(self, qube: Qube) -> list[Assignment]:
        """Block devices of other qubes that this one has now."""

    @abc.abstractmethod
    async def attach(self, qube: Qube, device: Exposed, options: Mapping[str, str]) -> None:
        """Give a running qube another one's block device. Raises CloisonError."""

    @abc.abstractmethod
    async def detach(self, qube: Qube, pattern: Device) -> None:
        """Take back what the pattern means. Raises DeviceNotAssigned, QubeNotHalted, CloisonError."""

    @abc.abstractmethod
    async def service(self, qube: Qube, service: str) -> None:
        """Run a service of a running qube as root, without input, until it has succeeded. Raises MachineError."""

    @abc.abstractmethod
    def stopped(self, qube: Qube) -> Awaitable[None]:
        """Completes when the qube is halted (at once if it is)."""

    # -- volumes
    @abc.abstractmethod
    def pool(self, name: str) -> Pool:
        """The open driver of a pool of the model."""

    @property
    @abc.abstractmethod
    def pool_folders(self) -> Mapping[str, str]:
        """Where each pool really is, of those that have answered."""

    @abc.abstractmethod
    def volume_config(self, qube: Qube, volume: Volume) -> VolumeConfig: ...

    @abc.abstractmethod
    async def grow(self, qube: Qube, volume: Volume, *, file_system: bool) -> None:
        """Have a running qube's disk, and the file system on it, follow the volume's size. Raises StorageError."""

    @abc.abstractmethod
    async def copy_volume(self, volume: Volume, config: VolumeConfig, source: Volume, source_config: VolumeConfig) -> None:
        """The committed state of `source` becomes the volume's new commit, from whatever pool. Raises StorageError."""

    @abc.abstractmethod
    def is_outdated(self, qube: Qube, volume: Volume) -> bool:
        """Whether a running snapshot's source has a newer commit."""

    @abc.abstractmethod
    async def in_storage(self, do: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What a driver does, in a thread: it may wait for a disk as long as it likes, and nobody else waits with it."""

    @abc.abstractmethod
    async def change_volume(self, do: Callable[[Pool, VolumeConfig], T], pool: Pool, config: VolumeConfig) -> T:
        """The same for a change that takes next to no space: on a full disk it may use what was kept back."""

    @abc.abstractmethod
    async def save_left(self, volume: Volume) -> None:
        """Commit what the last stop of its halted qube could not. Raises StorageError; a damaged image is left."""

    @abc.abstractmethod
    async def open_pool(self, name: str, driver: str, config: Mapping[str, str]) -> None: ...

    @abc.abstractmethod
    async def close_pool(self, name: str) -> None: ...

    @abc.abstractmethod
    def new_token(self) -> str: ...

    @abc.abstractmethod
    async def status(self) -> dict[str, Any]: ...

    @abc.abstractmethod
    async def import_qubes_xml(self, path: str) -> list[str]:
        """Take over what the file describes; returns remarks. Raises CloisonError."""

    @abc.abstractmethod
    async def seal_root(self, qube: Qube, path: str) -> None: ...


@dataclass
class Call:
    """One call under way. `argument` and `payload` are untrusted until the handler has checked them."""

    qubesd: Qubesd
    source: Qube
    dest: Qube
    argument: str
    payload: bytes
    send: Send                      # for calls that answer with events
    hangup: asyncio.Event = field(default_factory=asyncio.Event)     # set when the caller has gone, for streams
    connection: socket.socket | None = None

    @property
    def system(self) -> System:
        return self.qubesd.system

    async def while_there(self, work: Coroutine[Any, Any, T]) -> T:
        """For streams: the work's result. Raises CallerGone when the caller has hung up before; the work is given up then."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(self.hangup.wait())
        try:
            await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
                raise CallerGone("the caller has gone")
            return task.result()
        finally:
            gone.cancel()
            task.cancel()               # we are cancelled ourselves, or it is done
