"""Wardens without machines: qubes that start at once and do as they are told.

With a folder, the running qubes are written there (one file a qube), so that a daemon that comes up after a kill -9 finds
them again, as it finds real wardens. Passes `tests/contracts/wardens.py`.
"""
from __future__ import annotations

import asyncio
import json
import os
import select
import socket
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from cloison.daemon.wardens import Adopted, Progress, Usage, Wardens
from cloison.errors import MachineError
from cloison.runtime import files
from cloison.values import PowerState
from cloison.wire.blocks import Block
from cloison.wire.warden import Launch, no_space


def _ignore(_uuid: str, _event: str, _detail: dict[str, Any]) -> None:
    """Until somebody listens."""


async def _at_once(_what: object) -> None:
    """It takes no time."""


class FakeWardens(Wardens):
    """`refuse`: names of qubes whose machine fails to start; `deaf`: those that ignore a shutdown request and fail
    every service; `faint`: those
    whose machine ends the moment it runs.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.on_event = _ignore
        self.refuse: set[str] = set()
        self.deaf: set[str] = set()
        self.silent: set[str] = set()                                   # uuids of those whose wardens don't answer
        self.faint: set[str] = set()
        self.notes: dict[str, str] = {}                                 # what the agents of these say at their start
        self.launches: list[Launch] = []
        self.qdb: dict[str, dict[str, str]] = {}
        self.qdb_writes: list[list[str]] = []                           # paths, in the order of each write
        self.used = Usage(409600, 10**9)                                # by each running qube
        self.sizes: dict[tuple[str, str], int] = {}                     # (uuid, disk) -> bytes, as resized
        self.services: list[tuple[str, str, bytes]] = []                # (uuid, service, input), as asked for
        self.attaching: Callable[[Block], Awaitable[None]] = _at_once   # what happens while one is being attached
        self.warming: Callable[[Launch], Awaitable[None]] = _at_once    # what happens while a warm image is made
        self.booting: Callable[[Launch], Awaitable[None]] = _at_once    # what happens until a machine's agent answers
        self._folder = folder
        self._running: dict[str, Adopted] = {}
        self._leases: dict[str, tuple[socket.socket, select.epoll]] = {}
        self._warm: dict[str, str] = {}

    async def adopt(self) -> list[Adopted]:
        if self._folder is not None:
            self._read_folder(self._folder)
        return [Adopted(each.uuid, "", each.xid, PowerState.TRANSIENT, unknown=True) if each.uuid in self.silent else each
                for each in self._running.values()]

    def found(self, uuid: str) -> Adopted:
        return self._get(uuid)

    def quiet(self, uuid: str) -> None:
        """Its warden says nothing any more."""
        self.silent.add(uuid)
        self.on_event(uuid, "silent", {})

    def speak(self, uuid: str, state: PowerState = PowerState.RUNNING) -> None:
        """It does again, and this is how its machine is."""
        self.silent.discard(uuid)
        self._note(replace(self._running[uuid], state=state))
        self.on_event(uuid, "answers", {})

    def _read_folder(self, folder: str) -> None:
        os.makedirs(folder, exist_ok=True)
        for name in sorted(name for name in os.listdir(folder) if name.endswith(".warden")):
            with open(os.path.join(folder, name), encoding="ascii") as file:
                uuid, qube, xid, state, commits, blocks, space, note = json.load(file)
            attached = tuple(Block(*block) for block in blocks)
            self._running[uuid] = Adopted(uuid, qube, xid, PowerState(state), commits, attached, space, note)

    async def start(self, launch: Launch, lease: socket.socket | None = None) -> str:
        await asyncio.sleep(0)
        if launch.uuid in self._running:
            raise MachineError(f"{launch.name} runs already")
        await self.booting(launch)
        if launch.name in self.refuse:
            raise MachineError(f"the machine of {launch.name} did not start")
        self.launches.append(launch)
        self.qdb[launch.uuid] = dict(launch.identity)
        commits = {disk.role: disk.commit for disk in launch.disks if disk.commit}
        note = self.notes.get(launch.name, "")
        self._note(Adopted(launch.uuid, launch.name, launch.xid, PowerState.RUNNING, commits, note=note))
        self.on_event(launch.uuid, "running", {"note": note})
        if lease is not None:
            self._watch(launch.uuid, lease.dup())
        if launch.name in self.faint:
            self.stop(launch.uuid)
        return "warm" if launch.warm else "cold"

    def _watch(self, uuid: str, lease: socket.socket) -> None:
        epoll = select.epoll()
        epoll.register(lease.fileno(), 0)
        self._leases[uuid] = (lease, epoll)
        asyncio.get_running_loop().add_reader(epoll.fileno(), self.stop, uuid)

    def _note(self, found: Adopted) -> None:
        self._running[found.uuid] = found
        if self._folder is not None:
            facts = [found.uuid, found.name, found.xid, found.state.value, dict(found.commits), found.blocks, found.space,
                     found.note]
            files.write_atomic(self._path(found.uuid), json.dumps(facts).encode("ascii"))

    def _path(self, uuid: str) -> str:
        return os.path.join(self._folder or "", f"{uuid}.warden")

    def _get(self, uuid: str) -> Adopted:
        if uuid in self.silent:
            raise MachineError("its warden does not answer; qvm-kill ends it")
        try:
            return self._running[uuid]
        except KeyError:
            raise MachineError("that qube has no machine") from None

    def stop(self, uuid: str, event: str = "stopped") -> None:
        """The machine ends, for whatever reason."""
        self._get(uuid)
        del self._running[uuid]
        if self._folder is not None:
            os.unlink(self._path(uuid))
        self._let_go(uuid)
        self.on_event(uuid, event, {})
        for found in list(self._running.values()):
            for block in found.blocks:
                if block.backend == uuid:
                    self.lose(found.uuid, block.name)

    def lose(self, uuid: str, name: str) -> None:
        """A device that is attached to this qube has gone."""
        self._drop_block(uuid, name)
        self.on_event(uuid, "block-lost", {"name": name})

    def _let_go(self, uuid: str) -> None:
        if uuid in self._leases:
            lease, epoll = self._leases.pop(uuid)
            asyncio.get_running_loop().remove_reader(epoll.fileno())
            epoll.close()
            lease.close()

    def fill(self, uuid: str, where: str) -> None:
        """It writes, and there is no space in that folder."""
        self._note(replace(self._get(uuid), state=PowerState.PAUSED, space=where))
        self.on_event(uuid, "space-wanted", {"where": where})

    def free(self, uuid: str, state: str = "running") -> None:
        """There is space again."""
        self._note(replace(self._get(uuid), state=PowerState.RUNNING, space=""))
        self.on_event(uuid, "space-back", {"state": state})

    async def pause(self, uuid: str) -> None:
        self._note(replace(self._get(uuid), state=PowerState.PAUSED, space=""))

    async def unpause(self, uuid: str) -> None:
        if self._get(uuid).space:
            raise MachineError(no_space(self._get(uuid).space))
        self._note(replace(self._get(uuid), state=PowerState.RUNNING))

    async def shutdown(self, uuid: str) -> None:
        if self._get(uuid).space:
            raise MachineError(no_space(self._get(uuid).space))
        if self._get(uuid).name not in self.deaf:
            self.on_event(uuid, "halting", {})
            asyncio.get_running_loop().call_soon(self._power_off, uuid)

    def _power_off(self, uuid: str) -> None:
        if uuid in self._running:
            self.stop(uuid)

    async def kill(self, uuid: str) -> None:
        if uuid in self.silent:
            self.silent.discard(uuid)
            self.on_event(uuid, "killed", {})
        self.stop(uuid)

    async def qdb_write(self, uuid: str, entries: Mapping[str, str | None]) -> None:
        self._get(uuid)
        self.qdb_writes.append(list(entries))
        tree = self.qdb.setdefault(uuid, {})
        for path, value in entries.items():
            if value is None:
                tree.pop(path, None)
            else:
                tree[path] = value

    async def qdb_read(self, uuid: str, prefix: str) -> dict[str, bytes]:
        self._get(uuid)
        return {path: value.encode() for path, value in self.qdb.get(uuid, {}).items() if path.startswith(prefix)}

    async def console(self, uuid: str) -> str:
        self._get(uuid)
        return "/dev/tty"

    async def resize(self, uuid: str, role: str, size: int) -> None:
        self._get(uuid)
        if role not in (disk.role for disk in self._launch(uuid).disks):
            raise MachineError(f"no disk {role!r}")
        self.sizes[uuid, role] = size

    async def attach(self, uuid: str, block: Block) -> None:
        found = self._get(uuid)
        if block.backend not in self._running or found.name in self.deaf:
            raise MachineError("the other qube does not serve the device")
        await self.attaching(block)
        if any(each.name == block.name for each in found.blocks):
            raise MachineError(f"{block.name} is taken")
        self._note(replace(self._get(uuid), blocks=(*found.blocks, block)))

    async def detach(self, uuid: str, name: str) -> None:
        await asyncio.sleep(0)
        self._drop_block(uuid, name)

    def _drop_block(self, uuid: str, name: str) -> None:
        found = self._get(uuid)
        left = tuple(block for block in found.blocks if block.name != name)
        if len(left) == len(found.blocks):
            raise MachineError(f"{name} is not attached")
        self._note(replace(found, blocks=left))

    async def service(self, uuid: str, service: str, data: bytes) -> None:
        if self._get(uuid).name in self.deaf:
            raise MachineError(f"{service} failed in the qube: no such service")
        self.services.append((uuid, service, data))

    def _launch(self, uuid: str) -> Launch:
        try:
            return next(launch for launch in reversed(self.launches) if launch.uuid == uuid)
        except StopIteration:
            raise MachineError("started by an earlier daemon") from None

    async def ensure_warm(self, launch: Launch, progress: Progress, *, ahead: bool = False) -> str | None:
        """One image a root: keyed by the files it is made of."""
        key = "+".join(layer.path for layer in launch.disks[0].layers) or launch.name
        if key not in self._warm:
            progress(f"making a warm image for {launch.name}")
            await self.warming(launch)
            self._warm[key] = f"/warm/{len(self._warm)}"
        return self._warm[key]

    async def forget_warm(self, commits: Collection[str]) -> None:
        self._warm = {key: folder for key, folder in self._warm.items() if not any(commit in key for commit in commits)}

    def usage(self, uuid: str) -> Usage:
        return self.used if uuid in self._running else Usage(0, 0)

    def warm_images(self) -> list[str]:
        return sorted(self._warm)

    def running(self) -> list[str]:
        return sorted(self._running)

    async def close(self) -> None:
        for uuid in list(self._leases):
            self._let_go(uuid)
